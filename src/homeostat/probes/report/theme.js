"use strict";
// What every plot of the package's reports shares: colours from the page, axes, and how texts and numbers are written.
const Theme = (() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");

  // Plotly reads a little markup in its texts; a name must stay a name.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faint = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const broken = (text) => plain(text).replaceAll("\n", "<br>");

  // Plotly measures text itself, so the font is named in full here.
  function layout(extra) {
    const axis = {
      gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, ticks: "",
      title: { standoff: 8, font: { size: 13, color: css("--quiet") } }, tickfont: { size: 12.5, color: css("--quiet") },
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      margin: { l: 46, r: 14, t: 24, b: 40 }, dragmode: touch.matches ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--text") },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--text"), size: 13, family: getComputedStyle(document.body).fontFamily }, align: "left" },
      ...extra,
      xaxis: { ...axis, ...extra.xaxis, title: { ...axis.title, ...extra.xaxis.title } },
      yaxis: { ...axis, ...extra.yaxis, title: { ...axis.title, ...extra.yaxis.title } },
    };
  }

  function powerOfTen(power) {
    const raised = [...String(power)].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)])).join("");
    return power === 0 ? "1" : power === 1 ? "10" : `10${raised}`;
  }

  function ticks(low, high) {
    const values = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      for (const digit of high / low > 50 ? [1, 3] : [1, 2, 5])
        if (digit * 10 ** power >= low && digit * 10 ** power <= high) values.push(digit * 10 ** power);
    return values;
  }

  const PERCENT = { range: [-0.075, 1.04], tickvals: [0, 0.25, 0.5, 0.75, 1], ticktext: ["0 %", "25 %", "50 %", "75 %", "100 %"] };

  return { dark, plain, css, faint, broken, layout, powerOfTen, ticks, PERCENT };
})();
