// Draws the page from its data. Every text becomes a text node: nothing is read as HTML.
(() => {
"use strict";

const state = {
  page: JSON.parse(document.getElementById("data").textContent),
  hidden: new Set(), // names of runs
  axis: null, // key of the x axis of curves
  parts: [], // what has to be drawn again: {update(block), draw()}
};
const HEIGHT = 300;
const media = window.matchMedia("(prefers-color-scheme: dark)");
const fine = window.matchMedia("(pointer: fine)").matches;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value);
  }
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
const runColour = (number) => colour(`run${number % 8}`);
// Beyond eight runs the colours come again, with another line.
const runDash = (number) => ["solid", [8, 4], [2, 3], [10, 3, 2, 3]][Math.floor(number / 8) % 4];
function swatch(number) {
  const mark = make("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.borderTopColor = runColour(number);
  mark.style.borderTopStyle = number < 8 ? "solid" : "dashed";
  return mark;
}
// Number of the colour of a curve.
const paintOf = (series) => series.group ?? series.run ?? 0;
const isHidden = (run) =>
  run !== null && run !== undefined && state.hidden.has(state.page.runs[run]?.name);

function short(value) {
  const size = Math.abs(value);
  for (const [factor, unit] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= factor) {
      const [by, name] = unit === "k" ? [1e3, "k"] : [factor, unit];
      return `${Number((value / by).toPrecision(4))}${name}`;
    }
  }
  return String(Number(value.toPrecision(4)));
}

function seconds(value) {
  if (value >= 7200) return `${Number((value / 3600).toPrecision(4))} h`;
  if (value >= 180) return `${Number((value / 60).toPrecision(4))} min`;
  return `${Number(value.toPrecision(4))} s`;
}
// The x values of a curve along an axis: the curves of a run share them.
const along = (series, key) => state.page.xs[series.x]?.[key] || [];
const isTime = (axis) => axis.key === "elapsed_s";
const readable = (axis, value) => isTime(axis) ? seconds(value) : short(value);

// The unit of an axis up to `most`: [how much of the values it is, its part of the label].
function unitOf(axis, most) {
  const [, divisor, name] = axis.units.find(([least]) => most >= least) || [0, 1, ""];
  return [divisor, name && `, ${name}`];
}

// ---- controls ----

function controls() {
  const box = document.getElementById("controls");
  box.replaceChildren();
  if (state.page.runs.length) {
    const set = make("fieldset", {}, make("legend", {}, "Runs"));
    state.page.runs.forEach((run, number) => {
      const input = make("input", {
        type: "checkbox", "data-run-toggle": number,
        onchange: () => {
          if (input.checked) state.hidden.delete(run.name);
          else state.hidden.add(run.name);
          redraw();
        },
      });
      input.checked = !state.hidden.has(run.name);
      const note = make("span", { class: "note" }, run.note ? ` ${run.note}` : "");
      set.append(make("label", {}, input, swatch(number), make("span", {}, run.name), note));
    });
    box.append(set);
  }

  const axes = new Map();
  for (const block of blocksOf("lines")) for (const axis of block.x) axes.set(axis.key, axis.label);
  if (axes.size) {
    state.axis ??= state.page.along;
    const select = make("select", {
      id: "axis", onchange: () => { state.axis = select.value; redraw(); },
    });
    for (const [key, label] of axes) select.append(make("option", { value: key }, label));
    select.value = state.axis;
    box.append(make("label", {}, "Along", select));
  }

  const theme = make("select", {
    id: "theme",
    onchange: () => {
      if (theme.value) document.documentElement.dataset.theme = theme.value;
      else delete document.documentElement.dataset.theme;
      controls();
      redraw();
    },
  });
  for (const [value, name] of [["", "as the system"], ["light", "light"], ["dark", "dark"]])
    theme.append(make("option", { value }, name));
  theme.value = document.documentElement.dataset.theme || "";
  box.append(make("label", {}, "Colours", theme));
}

function* blocksOf(kind) {
  for (const section of state.page.sections)
    for (const block of section.blocks) if (block.kind === kind) yield block;
}

// ---- charts ----

class Chart {
  constructor(block, optionOf) {
    this.block = block;
    this.optionOf = optionOf;
    this.log = { x: !!block.x?.is_log, y: !!block.y?.is_log };
    this.place = -1;
    this.holder = make("div", {
      class: "chart", tabindex: "0", role: "img",
      onkeydown: (event) => this.key(event), ondblclick: () => this.reset(),
    });
    this.buttons = make("span", { class: "buttons" });
    this.caption = make("figcaption", {}, make("h3", {}, block.title), this.buttons);
    this.about = make("p", { class: "note" });
    this.details = make("details", {
      ontoggle: () => { if (this.details.open) this.fillTable(); },
    }, make("summary", {}, "Data as a table"));
    this.groups = make("p", { class: "groups", hidden: !block.groups?.length });
    const isWide = block.kind === "parallel" || block.is_main;
    this.element = make("figure", { class: isWide ? "wide" : "", "data-title": block.title },
      this.caption, this.groups, this.holder, this.about, this.details);
    this.addButtons();
  }

  addButtons() {
    const add = (which, name) => {
      const button = make("button", {
        type: "button", "aria-pressed": String(this.log[which]),
        onclick: () => {
          this.log[which] = !this.log[which];
          button.setAttribute("aria-pressed", String(this.log[which]));
          this.draw(true);
        },
      }, name);
      button.setAttribute("aria-label", `${name} of ${this.block.title}`);
      this.buttons.append(button);
    };
    if (this.block.kind === "lines") { add("x", "log x"); add("y", "log y"); }
    if (this.block.kind === "scatter") {
      if (!this.block.x.categories.length) add("x", "log x");
      add("y", "log y");
    }
    if (this.block.kind === "lines" || this.block.kind === "scatter") {
      this.buttons.append(make("button", {
        type: "button", "aria-label": `whole of ${this.block.title}`, onclick: () => this.reset(),
      }, "whole"));
    }
  }

  update(block) {
    this.block = block;
    this.draw(false);
    if (this.details.open) this.fillTable();
  }

  draw(anew = true) {
    this.about.textContent = this.block.about;
    this.groups.replaceChildren(...(this.block.groups || []).map((name, number) =>
      make("span", {}, swatch(number), name)));
    this.holder.setAttribute("aria-label", `${this.block.title}. ${this.block.about}`);
    const option = this.optionOf(this);
    this.holder.style.height = `${option.height || HEIGHT}px`;
    delete option.height;
    if (!this.chart) {
      this.chart = echarts.init(this.holder, null, { renderer: "svg" });
      this.observer = new ResizeObserver(() => this.chart.resize());
      this.observer.observe(this.holder);
    }
    this.chart.setOption(common(option), anew ? { notMerge: true } : { replaceMerge: ["series"] });
    // A frame drawn with the mouse zooms; a finger scrolls the page instead.
    if (fine && option.dataZoom) {
      this.chart.dispatchAction({
        type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true,
      });
    }
    this.holder.dataset.drawn = String((Number(this.holder.dataset.drawn) || 0) + 1);
  }

  // Gives up what the library and the browser keep for it.
  dispose() {
    this.observer?.disconnect();
    this.chart?.dispose();
  }

  reset() {
    this.chart.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, start: 0, end: 100 });
    this.chart.dispatchAction({ type: "dataZoom", dataZoomIndex: 1, start: 0, end: 100 });
  }

  // Arrows go along the first curve, + and - zoom, Escape shows the whole.
  key(event) {
    const series = this.chart.getOption().series;
    const index = series.findIndex((one) => one.data?.length);
    if (index < 0) return;
    const length = series[index].data.length;
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step) {
      this.place = Math.min(length - 1, Math.max(0, this.place + step));
      this.chart.dispatchAction({ type: "showTip", seriesIndex: index, dataIndex: this.place });
    } else if (event.key === "Escape") {
      this.chart.dispatchAction({ type: "hideTip" });
      this.reset();
    } else if (event.key === "+" || event.key === "-") {
      const { start, end } = this.chart.getOption().dataZoom?.[0] || { start: 0, end: 100 };
      const half = ((end - start) / 2) * (event.key === "+" ? 0.5 : 2);
      const centre = (start + end) / 2;
      this.chart.dispatchAction({
        type: "dataZoom", dataZoomIndex: 0,
        start: Math.max(0, centre - half), end: Math.min(100, centre + half),
      });
    } else return;
    event.preventDefault();
  }

  fillTable() {
    const { columns, rows } = dataOf(this.block);
    const body = make("tbody");
    for (const row of rows)
      body.append(make("tr", {}, ...row.map((cell, place) =>
        make(place ? "td" : "th", place ? {} : { scope: "row" }, String(cell)))));
    const head = make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)));
    const table = make("table", {}, make("thead", {}, head), body);
    table.prepend(make("caption", {}, this.block.title));
    scrollInto(this.details, table, this.block.title);
  }
}

// Puts a table into its frame in `holder`. The frame stays, scrolled and focused as it was.
function scrollInto(holder, table, name) {
  const frame = holder.querySelector(".scroll");
  if (!frame) {
    // Two datasets have a table of the same name; the sections differ.
    const heading = holder.closest("section")?.querySelector("h2")?.textContent || "";
    holder.append(scrolling(table, `${name}, ${heading}`));
    return;
  }
  const { scrollLeft, scrollTop } = frame;
  frame.replaceChildren(table);
  Object.assign(frame, { scrollLeft, scrollTop });
}

function scrolling(table, name) {
  return make("div", { class: "scroll", tabindex: "0", role: "region",
    "aria-label": `Table: ${name}` }, table);
}

function dataOf(block) {
  const spread = (length) => {
    const step = Math.max(1, Math.ceil(length / 60));
    const places = [];
    for (let place = 0; place < length; place += step) places.push(place);
    if (length && places[places.length - 1] !== length - 1) places.push(length - 1);
    return places;
  };
  const rows = [];
  if (block.kind === "lines") {
    for (const series of block.series) {
      if (isHidden(series.run)) continue;
      for (const place of spread(series.y.length)) {
        const x = series.style === "level" ? "everywhere" : along(series, state.axis)[place] ?? "–";
        rows.push([series.name, x, series.y[place] ?? "–"]);
      }
    }
    const axis = block.x.find((one) => one.key === state.axis) || block.x[0];
    const label = axis.label + (isTime(axis) ? ", seconds" : "");
    return { columns: ["curve", label, block.y.label], rows };
  }
  if (block.kind === "scatter") {
    for (const cloud of block.clouds)
      for (const point of cloud.points) rows.push([cloud.name, point.x, point.y]);
    return { columns: ["of", block.x.label, block.y.label], rows };
  }
  if (block.kind === "parallel") {
    block.rows.forEach((row, place) => rows.push([block.names[place], ...row]));
    return { columns: ["run", ...block.axes.map((axis) => axis.label)], rows };
  }
  const bars = shownBars(block);
  const { parts } = bars;
  bars.names.forEach((name, place) => rows.push([name, ...parts.map(([, all]) => all[place])]));
  return { columns: ["", ...parts.map(([name]) => `${name}, ${block.label}`)], rows };
}

// The bars of runs that are not hidden: {names, limits, parts: [[name, values], ...]}.
function shownBars(block) {
  const keep = (values) => values.filter((_, place) => !isHidden(block.runs[place]));
  const parts = Object.entries(block.parts).map(([name, values]) => [name, keep(values)]);
  return { names: keep(block.names), limits: keep(block.limits), parts };
}

function common(option) {
  const ink = colour("ink"), grid = colour("grid");
  const style = (axis) => ({
    axisLine: { onZero: false, lineStyle: { color: colour("edge") } }, nameTextStyle: { color: colour("faint") },
    ...axis, splitLine: { lineStyle: { color: grid }, ...axis.splitLine },
    axisLabel: { color: colour("faint"), hideOverlap: true, ...axis.axisLabel },
  });
  for (const name of ["xAxis", "yAxis"]) if (option[name]) option[name] = style(option[name]);
  option.tooltip = {
    confine: true, backgroundColor: colour("raised"), borderColor: colour("edge"),
    textStyle: { color: ink }, ...option.tooltip,
  };
  return { animation: false, textStyle: { fontFamily: "sans-serif", color: ink }, ...option };
}

const zoom = () => [
  { type: "inside", xAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "ctrl",
    moveOnMouseMove: false, moveOnMouseWheel: false },
  { type: "inside", yAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: false,
    moveOnMouseMove: false, moveOnMouseWheel: false },
];
const toolbox = () => ({
  left: -100, top: -100,
  feature: { dataZoom: { xAxisIndex: 0, yAxisIndex: 0, filterMode: "none" } },
});

// An axis of numbers; a logarithmic one ends close to its values.
function numeric(isLog, values, more) {
  const shown = values.filter((value) => value !== null && (!isLog || value > 0));
  if (!isLog || !shown.length) return { type: "value", scale: true, ...more };
  const least = shown.reduce((a, b) => Math.min(a, b)), most = shown.reduce((a, b) => Math.max(a, b));
  const room = Math.max(1.02, (most / least) ** 0.04);
  const customValues = logMarks(least / room, most * room);
  return { type: "log", min: least / room, max: most * room, axisTick: { customValues }, ...more,
    splitLine: { customValues }, axisLabel: { ...more.axisLabel, customValues } };
}

// Round values between two others: the library marks powers of its base alone.
function logMarks(least, most) {
  const decades = Math.log10(most / least);
  const factors = decades > 3 ? [1] : decades > 1.2 ? [1, 2, 5]
    : decades > 0.5 ? [1, 1.5, 2, 3, 4, 5, 6, 8] : null;
  const marks = [];
  if (!factors) {
    const rough = (most - least) / 5, unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
    for (let mark = Math.ceil(least / step); mark * step <= most; mark += 1)
      marks.push(Number((mark * step).toPrecision(6)));
    return marks;
  }
  const first = Math.floor(Math.log10(least)), skip = Math.ceil(decades / 8);
  for (let power = first; 10 ** power <= most; power += decades > 8 ? skip : 1)
    for (const factor of factors) {
      const mark = Number((factor * 10 ** power).toPrecision(3));
      if (mark >= least && mark <= most) marks.push(mark);
    }
  return marks;
}

// Values that differ by rounding alone, as seconds under a budget of time, stay in the middle.
function around(isLog, values) {
  const least = Math.min(...values), most = Math.max(...values);
  if (isLog || !values.length || most - least > 0.02 * Math.abs(most)) return {};
  return { min: least - 0.1 * Math.abs(most), max: most + 0.1 * Math.abs(most) };
}

const legend = () => ({
  type: "scroll", top: 0, left: 0, textStyle: { color: colour("ink") },
  pageTextStyle: { color: colour("ink") }, pageIconColor: colour("ink"),
});

function named(label, extra) {
  return { name: label, nameLocation: "middle", ...extra };
}

function linesOption(figure) {
  const { block, log } = figure;
  const axis = block.x.find((one) => one.key === state.axis) || block.x[0];
  const drawn = [];
  const all = { x: [], y: [] };
  for (const series of block.series) {
    if (isHidden(series.run)) continue;
    const points = [];
    const places = along(series, axis.key);
    series.y.forEach((y, place) => {
      const x = series.style === "level" ? null : places[place] ?? null;
      const isGap = y === null || (log.y && y <= 0);
      if (series.style === "level" ? isGap : x === null || (log.x && x <= 0)) return;
      points.push([x, isGap ? null : y]);
      if (x !== null) all.x.push(x);
      if (!isGap) all.y.push(y);
    });
    drawn.push({ series, points });
  }
  const least = all.x.length ? all.x.reduce((a, b) => Math.min(a, b)) : 0;
  const most = all.x.length ? all.x.reduce((a, b) => Math.max(a, b)) : 1;
  const [unit, unitName] = unitOf(axis, most);
  const series = drawn.map(({ series: one, points }) => {
    const isLevel = one.style === "level";
    const data = isLevel && points.length
      ? [[least, points[0][1]], [most, points[0][1]]] : points;
    const isAlone = data.length === 1;
    return {
      type: "line", name: one.name, connectNulls: false,
      data: data.map(([x, y]) => [x / unit, y]),
      symbol: one.style === "points" || isAlone ? "circle" : "none", symbolSize: 6,
      color: runColour(paintOf(one)),
      lineStyle: {
        width: one.style === "faint" ? 1 : 2, opacity: one.style === "faint" ? 0.55 : 1,
        type: isLevel ? [6, 4] : runDash(paintOf(one)),
      },
      emphasis: { disabled: true },
    };
  });
  const marks = block.marks.filter((mark) => !isHidden(mark.run) && mark.x[axis.key] != null);
  if (marks.length) {
    series.push({
      type: "line", data: [], name: "growth",
      markLine: {
        symbol: "none", silent: true,
        data: marks.map((mark) => ({
          xAxis: mark.x[axis.key] / unit, lineStyle: { color: runColour(mark.run), type: "dotted" },
          label: { formatter: () => mark.name, color: colour("faint"), fontSize: 10,
            position: "insideEndTop" },
        })),
      },
    });
  }
  return {
    height: block.is_main ? 400 : HEIGHT,
    grid: { left: 56, right: 24, top: 20, bottom: 44 },
    xAxis: numeric(log.x, all.x.map((x) => x / unit), {
      ...named(axis.label + unitName, { nameGap: 28 }),
      ...(log.x ? {} : { min: 0, max: most / unit }),
      axisLabel: { formatter: short, showMaxLabel: log.x },
    }),
    yAxis: numeric(log.y, all.y, {
      ...named(block.y.label, { nameGap: 42 }), axisLabel: { formatter: short },
    }),
    dataZoom: zoom(), toolbox: toolbox(),
    tooltip: {
      trigger: "axis", axisPointer: { type: "line" },
      formatter: (hits) => curveTip(axis, unit, drawn, hits),
    },
    series,
  };
}

// All curves at the place that is pointed at: the library would name those of one place alone.
function curveTip(axis, unit, drawn, hits) {
  const list = Array.isArray(hits) ? hits : [hits];
  if (!list.length) return "";
  const x = list[0].value[0] * unit;
  const box = make("div", { class: "tip" }, make("strong", {}, `${readable(axis, x)}`));
  for (const { series, points } of drawn) {
    const known = points.filter((point) => point[1] !== null);
    if (!known.length) continue;
    let nearest = known[0];
    for (const point of known)
      if (Math.abs(point[0] - x) < Math.abs(nearest[0] - x)) nearest = point;
    box.append(make("div", {}, swatch(paintOf(series)), make("span", {}, `${series.name}: ${short(nearest[1])}`)));
  }
  return box;
}

function textTip(lines) {
  const box = make("div", { class: "tip" });
  lines.forEach((line, place) => box.append(make("div", {},
    make(place ? "span" : "strong", {}, line))));
  return box;
}

function scatterOption(figure) {
  const { block, log } = figure;
  const names = block.x.categories;
  const all = { x: [], y: [] };
  const shapes = ["circle", "rect", "triangle", "diamond", "pin", "arrow"];
  // A mean explains itself beside its points.
  const shownClouds = block.clouds.filter((cloud) => !cloud.is_dash).map((cloud) => cloud.name);
  let number = -1;
  const n_own = block.clouds.filter((cloud) => !cloud.is_context).length;
  const series = [];
  for (const cloud of block.clouds) {
    if (!cloud.is_context && !cloud.is_more) number += 1;
    // Models beside each other within the place of a name.
    const shift = !block.is_apart ? 0
      : cloud.is_context ? 0.32 : (number + 0.5) / n_own * 0.5 - 0.25;
    const data = cloud.points.map((point) => {
      const x = names.length ? names.indexOf(point.x) + shift : point.x;
      all.x.push(x);
      all.y.push(point.y);
      return { value: [x, point.y], said: [cloud.name, ...point.lines] };
    });
    const paint = cloud.is_context ? colour("faint") : runColour(number);
    series.push(cloud.is_line
      ? { type: "line", step: "end", name: cloud.name, data, color: paint, symbol: "none",
          lineStyle: cloud.is_context ? { width: 1.5, type: "dashed" } : { width: 2 }, z: 1 }
      : cloud.is_dash
      ? { type: "scatter", name: cloud.name, data, color: paint, z: 3, symbol: "rect",
          symbolSize: [20, 3] }
      : { type: "scatter", name: cloud.name, data, color: paint, z: 2,
          symbol: cloud.is_context ? "circle" : shapes[number % shapes.length],
          symbolSize: cloud.is_context ? 6 : 9,
          itemStyle: cloud.is_context
            ? { color: colour("ground"), borderColor: paint, borderWidth: 1.5 }
            : { opacity: 0.85 } });
  }
  // Names stand the steeper the less room there is for each.
  const longest = names.reduce((most, name) => Math.max(most, 6.5 * name.length), 0);
  const room = (figure.holder.clientWidth || 600) / Math.max(1, names.length);
  const turn = longest < room ? 0 : room > 50 ? 30 : 75;
  const xAxis = names.length
    ? { type: "value", min: -0.5, max: names.length - 0.5, interval: 0.5,
        axisLabel: { formatter: (x) => names[x] || "", rotate: turn, hideOverlap: false },
        splitLine: { show: false }, axisTick: { show: false } }
    : numeric(log.x, all.x, { ...named(block.x.label, { nameGap: 28 }),
        ...around(log.x, all.x), axisLabel: { formatter: short, margin: 12 } });
  return {
    height: names.length ? 420 : 360,
    legend: { ...legend(), data: shownClouds },
    grid: { left: 60, right: 24, top: 44, bottom: 34 + Math.sin(turn * Math.PI / 180) * longest },
    xAxis,
    yAxis: numeric(log.y, all.y,
      { ...named(block.y.label, { nameGap: 44 }), axisLabel: { formatter: short } }),
    dataZoom: zoom(), toolbox: toolbox(),
    tooltip: { trigger: "item", formatter: (hit) => textTip(hit.data?.said || [hit.seriesName]) },
    series,
  };
}

function barsOption(figure) {
  const { block } = figure;
  const { names, limits, parts } = shownBars(block);
  const series = parts.map(([name, values], number) => ({
    type: "bar", name, data: values, stack: block.is_stacked ? "all" : undefined,
    color: runColour(number), barMaxWidth: 26,
  }));
  if (limits.length) {
    series.push({
      type: "scatter", name: "limit", color: colour("limit"), symbol: "rect", symbolSize: [3, 28],
      data: limits.map((limit, place) => [limit, place]), z: 5,
    });
  }
  const rows = names.length * (block.is_stacked ? 1 : parts.length);
  return {
    height: 110 + 34 * Math.min(rows, 40),
    grid: { left: 8, right: 24, top: 42, bottom: 44, containLabel: true },
    legend: parts.length > 1 ? legend() : undefined,
    xAxis: { type: "value", ...named(block.label, { nameGap: 26 }),
      axisLabel: { formatter: short } },
    yAxis: { type: "category", data: names, inverse: true,
      axisLabel: { width: Math.min(150, figure.holder.clientWidth * 0.32 || 150),
        overflow: "truncate" } },
    tooltip: {
      trigger: "axis", axisPointer: { type: "shadow" },
      formatter: (hits) => textTip([names[hits[0].dataIndex],
        ...parts.filter(([, values]) => values[hits[0].dataIndex] != null)
          .map(([name, values]) => `${name}: ${short(values[hits[0].dataIndex])} ${block.label}`)]),
    },
    series,
  };
}

function parallelOption(figure) {
  const { block } = figure;
  const last = block.axes.length - 1;
  const losses = block.rows.map((row) => row[last]);
  return {
    height: 420,
    parallel: { left: 60, right: 90, top: 48, bottom: 30 },
    parallelAxis: block.axes.map((axis, dim) => ({
      dim, name: axis.label, nameTextStyle: { color: colour("ink") },
      type: axis.categories.length ? "category" : "value", scale: true,
      ...(axis.categories.length ? { data: axis.categories } : {}),
      axisLine: { lineStyle: { color: colour("faint") } },
      axisLabel: { color: colour("ink"), textBorderColor: colour("ground"), textBorderWidth: 4 },
    })),
    visualMap: {
      show: false, dimension: last, min: Math.min(...losses), max: Math.max(...losses),
      inRange: { color: [colour("run0"), colour("run4"), colour("run1")] },
    },
    tooltip: {
      trigger: "item",
      formatter: (hit) => textTip([block.names[hit.dataIndex],
        ...block.axes.map((axis, place) => {
          const value = block.rows[hit.dataIndex][place];
          return `${axis.label}: ${typeof value === "number" ? short(value) : value}`;
        })]),
    },
    series: [{
      type: "parallel", lineStyle: { width: 2, opacity: 0.8 }, data: block.rows,
      emphasis: { lineStyle: { width: 4, opacity: 1 } },
    }],
  };
}

const OPTIONS = {
  lines: linesOption, scatter: scatterOption, bars: barsOption, parallel: parallelOption,
};

// ---- tables and texts ----

const isFigure = (cell) => cell.value !== null || cell.text === "–";

class Table {
  constructor(block) {
    this.holder = make("div");
    this.element = this.holder;
    this.order = null;
    this.block = block;
    if (block.is_folded) {
      this.holder = make("div");
      this.element = make("details", {}, make("summary", {}, block.title), this.holder);
    }
  }

  update(block) {
    this.block = block;
    this.draw();
  }

  draw() {
    const { block } = this;
    const isNumber = block.columns.map((_, place) =>
      place > 0 && block.rows.some((row) => row[place]?.value !== null && row[place]));
    const canSort = !block.runs.length && block.rows.length > 2;
    const head = make("tr");
    block.columns.forEach((name, place) => {
      const attributes = { scope: "col", class: isNumber[place] ? "number" : "",
        hidden: isHidden(block.runs[place]) };
      let content = name;
      if (canSort && name) {
        content = make("button", { type: "button", onclick: () => this.sort(place) }, name);
        if (this.order?.place === place)
          attributes["aria-sort"] = this.order.sign > 0 ? "ascending" : "descending";
      }
      const tag = name || place ? "th" : "td"; // a heading must say something
      head.append(make(tag, tag === "th" ? attributes : {}, content));
    });
    const body = make("tbody");
    for (const number of this.sorted()) {
      const row = block.rows[number];
      const line = make("tr", { hidden: isHidden(block.row_runs[number]) });
      row.forEach((cell, place) => {
        const attributes = {
          class: [isFigure(cell) && "number", cell.text.length < 28 && "short",
            cell.mark && "marked"].filter(Boolean).join(" "),
          "data-value": cell.value, hidden: isHidden(block.runs[place]),
        };
        if (place) line.append(make("td", attributes, cell.text));
        else line.append(make("th", { scope: "row", ...attributes }, cell.text));
      });
      body.append(line);
    }
    const table = make("table", { "data-title": block.title },
      make("caption", {}, block.title), make("thead", {}, head), body);
    const buttons = () => [...this.holder.querySelectorAll("thead button")];
    const focused = buttons().indexOf(document.activeElement);
    scrollInto(this.holder, table, block.title);
    // The new buttons are others: what the reader was at is found by its place.
    buttons()[focused]?.focus({ preventScroll: true });
  }

  sorted() {
    const places = this.block.rows.map((_, number) => number);
    if (!this.order) return places;
    const { place, sign } = this.order;
    const key = (number) => {
      const cell = this.block.rows[number][place];
      return cell.value ?? cell.text;
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number"
      ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return places.sort((a, b) => sign * compare(key(a), key(b)));
  }

  sort(place) {
    const sign = this.order?.place === place ? -this.order.sign : 1;
    this.order = { place, sign };
    this.draw();
  }
}

class Plain {
  constructor(block) {
    this.element = make("div");
    this.block = block;
  }

  update(block) {
    this.block = block;
    this.draw();
  }

  draw() {
    const { block } = this;
    this.element.hidden = block.kind === "samples" && isHidden(block.run);
    if (block.kind === "note") this.element.replaceChildren(make("p", {}, block.text));
    if (block.kind === "code")
      this.element.replaceChildren(make("h3", {}, block.title), make("pre", {},
        make("code", {}, block.text)));
    if (block.kind === "samples") this.element.replaceChildren(...samples(block));
  }
}

const whole = (text) => text.replace(/^##/, "");

function samples(block) {
  const list = make("ul", { class: "texts" });
  for (const readings of block.texts) {
    const readingList = make("dl", { class: "reading" });
    for (const reading of readings) {
      const said = make("dd");
      for (const piece of reading.pieces) {
        const isText = typeof piece === "string";
        // A WordPiece that goes on with a word stands close to what is before it.
        if (!(isText ? piece : piece.truth).startsWith("##")) said.append(" ");
        if (isText) said.append(whole(piece));
        else if (piece.guess === piece.truth)
          said.append(make("ins", { title: "guessed right" }, whole(piece.guess)));
        else
          said.append(make("del", {}, whole(piece.guess) || "(nothing)"),
            make("span", { class: "truth" }, ` [${whole(piece.truth)}]`));
      }
      readingList.append(make("dt", {}, reading.label), said);
    }
    list.append(make("li", {}, readingList));
  }
  const note = "Underlined: right. Wavy: wrong, with the truth in brackets.";
  return [make("h3", {}, block.title), make("p", { class: "note" }, note), list];
}

// ---- the page ----

function build() {
  const { page } = state;
  const main = document.getElementById("main");
  main.replaceChildren();
  for (const { parts } of state.parts) for (const part of parts) part.dispose?.();
  state.parts = [];
  const contents = make("ul");
  for (const problem of page.problems) main.append(make("p", { role: "note" }, problem));
  for (const section of page.sections) {
    contents.append(make("li", {}, make("a", { href: `#${section.name}` }, section.title)));
    const element = make("section", { id: section.name, "aria-labelledby": `${section.name}-title` },
      make("h2", { id: `${section.name}-title` }, section.title));
    const intro = make("p", {}, section.intro);
    element.append(intro);
    let grid = null;
    const parts = [];
    for (const block of section.blocks) {
      const option = OPTIONS[block.kind];
      const part = option ? new Chart(block, option)
        : block.kind === "table" ? new Table(block) : new Plain(block);
      if (option) {
        if (!grid) element.append(grid = make("div", { class: "charts" }));
        grid.append(part.element);
      } else {
        grid = null;
        element.append(part.element);
      }
      parts.push(part);
    }
    state.parts.push({ intro, parts });
    main.append(element);
  }
  document.getElementById("contents").replaceChildren(contents);
  controls();
  redraw();
}

function redraw() {
  for (const { parts } of state.parts) for (const part of parts) part.draw(true);
}

const shape = (page) => JSON.stringify([page.runs.map((run) => run.name), page.problems,
  page.sections.map((section) => [section.name, section.title,
    section.blocks.map((block) => [block.kind, block.title])])]);

function take(page) {
  const isSame = shape(page) === shape(state.page);
  state.page = page;
  if (!isSame) { build(); return; }
  // In place: what is open, zoomed or focused stays so.
  page.sections.forEach((section, number) => {
    const { intro, parts } = state.parts[number];
    intro.textContent = section.intro;
    section.blocks.forEach((block, place) => parts[place].update(block));
  });
  document.querySelectorAll("#controls [data-run-toggle]").forEach((input, number) => {
    const { note } = page.runs[number];
    input.parentElement.querySelector(".note").textContent = note ? ` ${note}` : "";
  });
}

function follow(every_s) {
  const footer = document.getElementById("footer");
  const said = make("p", { id: "live" }, "Live: waiting for news.");
  footer.append(said);
  let tag = null;
  let isAway = false;
  const ask = async () => {
    try {
      const answer = await fetch("data.json", { headers: tag ? { "If-None-Match": tag } : {},
        cache: "no-store" });
      if (answer.status === 200) {
        take(await answer.json());
        tag = answer.headers.get("ETag");
        said.textContent = `Live: new figures at ${new Date().toLocaleTimeString()}.`;
        document.body.dataset.updates = String((Number(document.body.dataset.updates) || 0) + 1);
      } else if (isAway) said.textContent = "Live: no news.";
      isAway = false;
    } catch {
      isAway = true;
      said.textContent = "Live: the command that serves this page does not answer.";
    }
    window.setTimeout(ask, every_s * 1000);
  };
  window.setTimeout(ask, every_s * 1000);
}

media.addEventListener("change", () => { controls(); redraw(); });
window.addEventListener("beforeprint", () => {
  document.documentElement.dataset.printed = document.documentElement.dataset.theme || "";
  document.documentElement.dataset.theme = "light";
  redraw();
});
window.addEventListener("afterprint", () => {
  const before = document.documentElement.dataset.printed;
  if (before) document.documentElement.dataset.theme = before;
  else delete document.documentElement.dataset.theme;
  redraw();
});
build();
document.getElementById("footer").prepend(make("p", {}, `Made at ${state.page.made}. `
  + "Charts: drag a frame to zoom, double-click for the whole; with the keyboard: arrows, + and −, "
  + "Escape. Drawn with Apache ECharts (Apache-2.0)."));
if (state.page.follow_s) follow(state.page.follow_s);
})();
