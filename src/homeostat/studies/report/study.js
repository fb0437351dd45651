"use strict";
// Draws the figures of a study from the embedded data, and draws them again when the theme changes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { dark, plain, css, broken, layout, ticks, PERCENT } = Theme;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon", "x"];

  function axis(of, values) {
    const found = { title: { text: plain(of.title) } };
    if (of.labels.length) {
      const places = of.labels.map((_, place) => place);
      return { ...found, tickvals: places, ticktext: of.labels.map((label) => plain(label).replaceAll(" ", "<br>")), range: [-0.6, of.labels.length - 0.4], showgrid: false };
    }
    if (of.percent) return { ...found, ...PERCENT };
    if (of.log) {
      const positive = values.filter((value) => value !== null && value > 0);
      if (!positive.length) return found;
      const low = Math.min(...positive) / 1.15, high = Math.max(...positive) * 1.15;
      const exact = [...new Set(positive)].sort((a, b) => a - b);
      const marks = exact.length <= 8 ? exact : ticks(low, high);
      return { ...found, type: "log", range: [Math.log10(low), Math.log10(high)], tickvals: marks, ticktext: marks.map((value) => value.toLocaleString("en", { maximumSignificantDigits: 3 })) };
    }
    return of.range === null ? found : { ...found, range: of.range };
  }

  function bars(points, name, colour) {
    const ends = points.map((point) => [point[`${name}_low`], point[`${name}_high`]]);
    if (ends.every(([low, high]) => low === null || high === null)) return {};
    return { [`error_${name}`]: {
      type: "data", symmetric: false, color: colour, thickness: 1.2, width: 0,
      array: points.map((point, i) => (ends[i][1] === null ? 0 : Math.max(0, ends[i][1] - point[name]))),
      arrayminus: points.map((point, i) => (ends[i][0] === null ? 0 : Math.max(0, point[name] - ends[i][0]))),
    } };
  }

  function draw(plot) {
    const figure = data.figures[plot.dataset.figure];
    const paint = data[dark.matches ? "dark" : "light"];
    const all = figure.series.flatMap((series) => series.points);
    const digits = (value) => (figure.y.percent ? `${(100 * value).toFixed(1)} %` : value.toPrecision(4));
    const traces = figure.series.map((series, place) => {
      const colour = paint[series.colour];
      const points = series.points.filter((point) => point.x !== null && point.y !== null);
      return {
        x: points.map((point) => point.x), y: points.map((point) => point.y), mode: series.lines ? "lines+markers" : "markers",
        line: { color: colour, width: 1.8 }, marker: { color: colour, size: 9, opacity: 0.9, symbol: SYMBOLS[place % SYMBOLS.length], line: { color: css("--panel"), width: 1 } },
        hoverinfo: "text", text: points.map((point) => `<b>${plain(series.name)}</b><br>${broken(point.text)}<br>${digits(point.y)}${point.y_low === null ? "" : ` [${digits(point.y_low)}, ${digits(point.y_high)}]`}`),
        ...bars(points, "x", colour), ...bars(points, "y", colour),
      };
    });
    const shapes = figure.level === null ? [] : [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: figure.level, y1: figure.level, line: { color: css("--mark-line"), width: 1.3, dash: "5px,4px" } }];
    const made = layout({
      margin: { l: 56, r: 16, t: 14, b: 48 }, shapes,
      xaxis: axis(figure.x, all.map((point) => point.x)), yaxis: axis(figure.y, all.flatMap((point) => [point.y, point.y_low, point.y_high])),
    });
    Plotly.react(plot, traces, made, { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" });
  }

  const plots = [...document.querySelectorAll(".plot")];
  dark.addEventListener("change", () => plots.forEach(draw));
  plots.forEach(draw);
})();
