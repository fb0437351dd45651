"use strict";
// Draws accuracy by cost and the differences of pairs, and draws them again when the theme changes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { dark, plain, css, faint, layout, ticks, PERCENT } = Theme;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon", "x"];
  const percent = (value) => `${(100 * value).toFixed(1)}`;
  const number = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

  function costs(points) {
    const all = points.map((point) => point.cost);
    const low = Math.min(...all) / 1.15, high = Math.max(...all) * 1.15;
    const marks = ticks(low, high);
    return { title: { text: `${data.costs} an example, at most` }, type: "log", range: [Math.log10(low), Math.log10(high)], tickvals: marks, ticktext: marks.map(number) };
  }

  function band(points, colour) {
    const there = points.filter((point) => point.low !== null && point.high !== null);
    return {
      x: [...there, ...[...there].reverse()].map((point) => point.cost),
      y: [...there.map((point) => point.high), ...[...there].reverse().map((point) => point.low)],
      fill: "toself", fillcolor: faint(colour, 0.15), line: { width: 0 }, hoverinfo: "skip", mode: "lines",
    };
  }

  function line(name, points, colour, place, words) {
    return {
      x: points.map((point) => point.cost), y: points.map((point) => point.value), mode: "lines+markers",
      line: { color: colour, width: 1.8 }, marker: { color: colour, size: 8, symbol: SYMBOLS[place % SYMBOLS.length], line: { color: css("--panel"), width: 1 } },
      hoverinfo: "text", text: points.map((point) => `<b>${plain(name)}</b><br>${number(point.cost)} ${data.costs}<br>${words(point)}`),
    };
  }

  function draw(plot) {
    const of = data.difficulties[Number(plot.dataset.difficulty)];
    const paint = data[dark.matches ? "dark" : "light"];
    const zero = { type: "line", x0: 0, x1: 1, xref: "paper", y0: 0, y1: 0, line: { color: css("--mark-line"), width: 1.3, dash: "5px,4px" } };
    const gaps = plot.dataset.kind === "gaps";
    const series = gaps ? of.gaps : of.curves.map((points, place) => ({ name: data.models[place], points }));
    const traces = series.flatMap(({ name, points }, place) => {
      const colour = paint[place % paint.length];
      const words = (point) => `${gaps && point.value > 0 ? "+" : ""}${percent(point.value)}${gaps ? " points" : " %"} [${point.low === null ? "?" : percent(point.low)}, ${point.high === null ? "?" : percent(point.high)}]${gaps ? "" : `<br>${number(point.steps)} steps`}`;
      return [band(points, colour), line(name, points, colour, place, words)];
    });
    const peaks = gaps ? [] : of.peaks.map(({ cost }, place) => ({ type: "line", x0: cost, x1: cost, y0: 0, y1: 1, yref: "paper", line: { color: paint[place % paint.length], width: 1.2, dash: "2px,3px" } }));
    const all = series.flatMap((one) => one.points);
    Plotly.react(plot, traces, layout({
      margin: { l: 56, r: 16, t: 14, b: 48 }, shapes: gaps ? [zero] : peaks, xaxis: costs(all),
      yaxis: gaps ? { title: { text: "difference of exact accuracy" }, tickformat: "+.0%" } : { title: { text: "exact accuracy" }, ...PERCENT },
    }), { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" });
  }

  const plots = [...document.querySelectorAll(".plot")];
  dark.addEventListener("change", () => plots.forEach(draw));
  plots.forEach(draw);
})();
