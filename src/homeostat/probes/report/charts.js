"use strict";
// Draws every plot of the page from the embedded data, and redraws when a switch, the legend or the theme changes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { dark, plain, css, faint, broken, layout, powerOfTen, ticks, PERCENT } = Theme;
  const state = { measure: "exact", axis: "steps", fact: "first", hidden: new Set() };
  const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star"];
  const STARTS = { zeros: "circle", noise: "square", swapped: "diamond" };

  const colour = (index) => data.difficulties[index][dark.matches ? "dark" : "light"];
  // Bands of many curves lie on each other at 0 % and 100 %, and must not add up to a wall.
  const bandAlpha = () => Math.min(0.18, (dark.matches ? 0.75 : 0.55) / data.difficulties.length);
  const shown = (curve) => !state.hidden.has(curve.difficulty);
  const title = (curve) => `<b>${plain(data.difficulties[curve.difficulty].name)}</b><br>`;
  const scale = (model) => (state.axis === "cost" && model.unitCost !== null ? model.unitCost : 1);

  // One range for all models, so that panels can be compared by eye. `low` and `high` are steps.
  function stepsAxis(low = data.steps[0], high = data.steps[1]) {
    const scales = data.models.map(scale);
    const cones = data.models.flatMap((model) => model.curves.map((curve) => (curve.cone ?? 0) * scale(model)));
    const from = low * Math.min(...scales);
    const to = Math.max(high * Math.max(...scales), ...cones);
    const values = ticks(from, to);
    return {
      type: "log", range: [Math.log10(from) - 0.06, Math.log10(to) + 0.08],
      tickvals: values, ticktext: values.map((value) => value.toLocaleString("en")),
      title: { text: state.axis === "cost" ? "cost (steps × cost of a step)" : "steps" },
    };
  }

  function horizon(model) {
    if (model.trained === null) return {};
    const x = model.trained * scale(model);
    const line = { color: css("--mark-line"), width: 1.5, dash: "5px,4px" };
    return {
      shapes: [{ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line, layer: "above" }],
      annotations: [{
        x: Math.log10(x), y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
        text: `trained: ${model.trained.toLocaleString("en")} step${model.trained === 1 ? "" : "s"}`,
        font: { size: 12, color: css("--quiet") },
      }],
    };
  }

  function band(curve, points, x) {
    return {
      x: [...x, ...[...x].reverse()],
      y: [...points.map((point) => point.high), ...points.map((point) => point.low).reverse()],
      fill: "toself", fillcolor: faint(colour(curve.difficulty), bandAlpha()), mode: "lines", line: { width: 0 },
      hoverinfo: "skip", visible: shown(curve), meta: { difficulty: curve.difficulty, part: "band" },
    };
  }

  function line(curve, points, x) {
    const paint = colour(curve.difficulty);
    return {
      x, y: points.map((point) => point.value), mode: "lines+markers", line: { color: paint, width: 2.2 },
      marker: { color: paint, size: 6.5, symbol: SYMBOLS[curve.difficulty % SYMBOLS.length] },
      text: points.map((point) => title(curve) + broken(point.text)), hoverinfo: "text", visible: shown(curve),
      meta: { difficulty: curve.difficulty, part: "line" },
    };
  }

  function shareLines(model, key) {
    return model.curves.filter((curve) => curve[key].length).flatMap((curve) => {
      const x = curve[key].map((point) => point.steps * scale(model));
      return [band(curve, curve[key], x), line(curve, curve[key], x)];
    });
  }

  function cones(model, y) {
    return model.curves.filter((curve) => curve.cone !== null && curve.cone > 0).map((curve, place) => ({
      x: [curve.cone * scale(model)], y: [y(place, curve)], mode: "markers", visible: shown(curve),
      marker: { symbol: "triangle-up", size: 12, color: colour(curve.difficulty) },
      text: [`${title(curve)}light cone: ${curve.cone.toLocaleString("en")} steps`], hoverinfo: "text",
      meta: { difficulty: curve.difficulty, part: "cone" },
    }));
  }

  const draw = {
    accuracy(model) {
      const curves = shareLines(model, state.measure);
      if (!curves.length)
        return { nothing: state.measure === "exact" ? "Answers were not judged: there is no accuracy to draw." : "Single symbols were not judged." };
      return {
        traces: [...curves, ...cones(model, () => -0.042)],
        layout: layout({ xaxis: stepsAxis(), yaxis: PERCENT, ...horizon(model) }),
      };
    },
    settled(model) {
      const curves = shareLines(model, "settled");
      if (!curves.length) return { nothing: "No budget was run." };
      return { traces: curves, layout: layout({ xaxis: stepsAxis(), yaxis: PERCENT, ...horizon(model) }) };
    },
    residual(model) {
      const all = data.models.flatMap((other) => other.curves.flatMap((curve) => curve.residual.flatMap((point) => [point.median, point.high])));
      const levels = data.models.map((other) => other.settleRtol);
      const positive = [...all, ...levels].filter((value) => value !== null && value > 0);
      const own = model.curves.flatMap((curve) => curve.residual.flatMap((point) => [point.median, point.high]));
      if (!own.some((value) => value !== null)) return { nothing: "No residual is finite: there is nothing to draw." };
      const floor = Math.min(...positive) / 3;
      const lift = (value) => (value === 0 ? floor : value);
      const traces = model.curves.flatMap((curve) => ["high", "median"].map((part) => ({
        x: curve.residual.map((point) => point.steps * scale(model)), y: curve.residual.map((point) => lift(point[part])),
        mode: part === "median" ? "lines+markers" : "lines", hoverinfo: "text", visible: shown(curve), connectgaps: false,
        line: { color: colour(curve.difficulty), width: part === "median" ? 2.2 : 1.6, dash: part === "median" ? "solid" : "dot" },
        marker: { color: colour(curve.difficulty), size: 6, symbol: SYMBOLS[curve.difficulty % SYMBOLS.length] },
        text: curve.residual.map((point) => title(curve) + broken(point.text)), meta: { difficulty: curve.difficulty, part },
      })));
      const marks = horizon(model);
      if (model.settleRtol > 0) {
        const level = { color: css("--mark-line"), width: 1.5, dash: "5px,4px" };
        marks.shapes = [...(marks.shapes ?? []), { type: "line", x0: 0, x1: 1, xref: "paper", y0: model.settleRtol, y1: model.settleRtol, line: level, layer: "above" }];
        marks.annotations = [...(marks.annotations ?? []), {
          x: 0.01, xref: "paper", xanchor: "left", y: Math.log10(model.settleRtol), yanchor: "top", showarrow: false,
          text: `settled: at most ${model.settleRtol}`, font: { size: 12, color: css("--text") },
        }];
      }
      const range = [Math.log10(floor), Math.log10(Math.max(...positive)) + 0.2];
      const every = Math.max(1, Math.ceil((range[1] - range[0]) / 8));
      const powers = [];
      for (let power = Math.ceil(range[0]); power <= range[1]; power += 1) if (power % every === 0) powers.push(power);
      const yaxis = { type: "log", range, tickvals: powers.map((power) => 10 ** power), ticktext: powers.map(powerOfTen) };
      return { traces, layout: layout({ xaxis: stepsAxis(), yaxis, ...marks }) };
    },
    alignment(model) {
      const points = model.curves.flatMap((curve) => curve.alignments.map((point) => ({ curve, point })));
      if (!points.length) return { nothing: "Alignment was not measured together with accuracy: there is no point to draw." };
      const arms = (of) => ({ type: "data", symmetric: false, array: [of.high - of.value], arrayminus: [of.value - of.low], thickness: 1.3, width: 3 });
      const traces = points.flatMap(({ curve, point }) => {
        const paint = colour(curve.difficulty);
        const common = { visible: shown(curve), hoverinfo: "text", text: [title(curve) + broken(point.text)] };
        const meta = (part) => ({ difficulty: curve.difficulty, part });
        const dot = {
          ...common, meta: meta("point"), x: [point.cosine.value], y: [point.exact.value], mode: "markers",
          marker: { color: paint, size: 11, symbol: STARTS[point.start] ?? "circle", line: { color: css("--panel"), width: 1.2 } },
          error_x: { ...arms(point.cosine), color: paint }, error_y: { ...arms(point.exact), color: paint },
        };
        if (point.null === null) return [dot];
        const none = {
          ...common, meta: meta("null"), x: [point.null.value], y: [point.exact.value], mode: "markers",
          marker: { symbol: "line-ns", size: 13, line: { color: paint, width: 2 } }, error_x: { ...arms(point.null), width: 0, color: paint },
        };
        const lead = {
          meta: meta("lead"), visible: shown(curve), x: [point.null.value, point.cosine.value], y: [point.exact.value, point.exact.value],
          mode: "lines", line: { color: faint(paint, 0.35), width: 1 }, hoverinfo: "skip",
        };
        return [lead, none, dot];
      });
      const ends = data.models.flatMap((other) => other.curves.flatMap((curve) => curve.alignments.flatMap((point) => [point.cosine.low, point.null?.low ?? 0])));
      return {
        traces,
        layout: layout({
          margin: { l: 46, r: 14, t: 12, b: 40 }, xaxis: { range: [Math.min(0, ...ends) - 0.05, 1.06], title: { text: "mean cosine of the two final states" } },
          yaxis: { ...PERCENT, title: { text: "exact accuracy" } },
        }),
      };
    },
    fact(model) {
      const rows = model.curves;
      const row = (curve) => -rows.indexOf(curve);
      const measured = rows.filter((curve) => curve.facts[state.fact].quantiles !== null);
      const judged = rows.some((curve) => curve.judged);
      const words = { first: judged ? "none solved" : "not judged", change: "not decoded", settled: "none settled" }[state.fact];
      if (!measured.length)
        return { nothing: { "none solved": "No example was ever solved.", "not judged": "Answers were not judged, so none is known to be solved.", "not decoded": "Answers were not decoded.", "none settled": "No example settled." }[words] };
      const everything = data.models.flatMap((other) => other.curves.flatMap((curve) => curve.facts[state.fact].quantiles ?? []));
      const never = everything.includes(0);
      const at = (value) => Math.max(value, 0.5) * scale(model);
      const bar = (curve, from, to, width, alpha) => ({
        x: [at(from), at(to)], y: [row(curve), row(curve)], mode: "lines", hoverinfo: "skip",
        line: { color: faint(colour(curve.difficulty), alpha), width }, meta: { difficulty: curve.difficulty, part: "bar" },
      });
      const traces = measured.flatMap((curve) => {
        const { quantiles, text } = curve.facts[state.fact];
        return [
          bar(curve, quantiles[0], quantiles[4], 2.5, 0.9), bar(curve, quantiles[1], quantiles[3], 14, 0.45),
          {
            x: [at(quantiles[2])], y: [row(curve)], mode: "markers", text: [title(curve) + broken(text)], hoverinfo: "text",
            marker: { color: colour(curve.difficulty), size: 9, line: { color: css("--panel"), width: 1.5 } }, meta: { difficulty: curve.difficulty, part: "median" },
          },
        ];
      });
      const marked = data.models.flatMap((other) => [other.trained, ...other.curves.map((curve) => curve.cone)]);
      const seen = [...everything, ...marked].filter((value) => value !== null && value > 0);
      const xaxis = stepsAxis(Math.min(...seen, data.steps[1]), Math.max(...seen, data.steps[0]));
      // An answer that never changed has 0 here, which a logarithmic axis does not have.
      if (never) {
        xaxis.range[0] = Math.log10(0.5 * Math.min(...data.models.map(scale))) - 0.06;
        xaxis.tickvals = ticks(Math.min(...data.models.map(scale)), 10 ** xaxis.range[1]);
        xaxis.ticktext = xaxis.tickvals.map((value) => value.toLocaleString("en"));
        xaxis.tickvals = [0.5 * scale(model), ...xaxis.tickvals];
        xaxis.ticktext = ["0", ...xaxis.ticktext];
      }
      const names = rows.map((curve) => plain(data.difficulties[curve.difficulty].name));
      const absent = rows.filter((curve) => !measured.includes(curve)).map((curve) => ({
        x: 0.02, xref: "paper", xanchor: "left", y: row(curve), text: words,
        showarrow: false, font: { size: 12.5, color: css("--quiet") },
      }));
      const marks = horizon(model);
      return {
        rows: rows.length,
        traces: [...cones(model, (_, curve) => row(curve) - 0.36).map((trace) => ({ ...trace, visible: true })), ...traces],
        layout: layout({
          xaxis, ...marks, annotations: [...(marks.annotations ?? []), ...absent],
          yaxis: { range: [0.45 - rows.length, 0.5], tickvals: rows.map((curve) => row(curve)), ticktext: names, showgrid: false },
        }),
      };
    },
  };

  function render(plot) {
    const model = data.models[Number(plot.dataset.model)];
    const empty = { nothing: "No budget was run: there is nothing to draw." };
    const found = data.steps === null ? empty : draw[plot.dataset.kind](model);
    const words = plot.nextElementSibling;
    words.hidden = found.nothing === undefined;
    plot.hidden = found.nothing !== undefined;
    words.textContent = found.nothing ?? "";
    if (found.nothing !== undefined) return;
    if (found.rows) plot.style.setProperty("--rows", `${90 + 38 * found.rows}px`);
    Plotly.react(plot, found.traces, found.layout, { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" });
  }

  const plots = [...document.querySelectorAll(".plot")];
  const redraw = (kinds) => plots.filter((plot) => !kinds || kinds.includes(plot.dataset.kind)).forEach(render);

  document.querySelectorAll(".key").forEach((key) => key.addEventListener("click", () => {
    const index = Number(key.dataset.difficulty);
    if (!state.hidden.delete(index)) state.hidden.add(index);
    document.querySelectorAll(`.key[data-difficulty="${index}"]`).forEach((twin) => twin.setAttribute("aria-pressed", String(!state.hidden.has(index))));
    redraw(["accuracy", "residual", "settled", "alignment"]);
  }));
  document.querySelectorAll("[data-set]").forEach((button) => {
    if (button.dataset.value === "symbol") button.disabled = !data.models.some((model) => model.curves.some((curve) => curve.symbol.length));
    button.addEventListener("click", () => {
      state[button.dataset.set] = button.dataset.value;
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      redraw({ measure: ["accuracy"], fact: ["fact"] }[button.dataset.set]);
    });
  });
  dark.addEventListener("change", () => redraw());
  redraw();
})();
