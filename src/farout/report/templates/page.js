"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const figures = plots.map((plot) => JSON.parse(plot.nextElementSibling.textContent));

  const shade = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Only where a colour is expected: a level of a category may well be called "var(--ink)".
  const coloured = (part, key = "") => {
    if (Array.isArray(part)) return part.map((item) => coloured(item, key));
    if (part && typeof part === "object")
      return Object.fromEntries(Object.entries(part).map(([name, item]) => [name, coloured(item, name)]));
    if (typeof part === "string" && /color/.test(key) && part.startsWith("var(")) return shade(part.slice(4, -1));
    return part;
  };

  const theme = () => {
    const axis = {
      gridcolor: shade("--rule"), zerolinecolor: shade("--rule"), linecolor: shade("--rule"),
      tickcolor: shade("--rule"), automargin: true,
      title: { font: { color: shade("--muted"), size: 13 }, standoff: 10 },
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, color: shade("--muted"), size: 12 },
        title: { font: { color: shade("--ink") } },
        colorway: [shade("--data"), shade("--accent"), shade("--muted")],
        hoverlabel: {
          bgcolor: shade("--card"), bordercolor: shade("--rule"), align: "left",
          font: { color: shade("--ink"), size: 13, family: getComputedStyle(document.body).fontFamily },
        },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: shade("--rule"), activecolor: shade("--muted") },
        margin: { l: 48, r: 16, t: 24, b: 48 },
        xaxis: axis, yaxis: axis,
      },
    };
  };

  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const draw = () => {
    const template = theme();
    plots.forEach((plot, i) => {
      const { data, layout } = coloured(figures[i]);
      Plotly.react(plot, data, { ...layout, template, autosize: true }, config);
    });
  };

  draw();
  dark.addEventListener("change", draw);
  // paper is light, whatever the screen is
  const printing = (on) => () => { root.classList.toggle("print", on); draw(); };
  addEventListener("beforeprint", printing(true));
  addEventListener("afterprint", printing(false));
})();
