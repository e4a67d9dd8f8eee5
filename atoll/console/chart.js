/** Stacked bars over time and curves over progress, drawn with uPlot in the colours of the theme. */

import { html, useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import uPlot from "/console/vendor/uplot.js";

const HEIGHT = 260;
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** @param props.series [{name, values}], `values` one per time; `show` formats a value, `whole` if only integers make sense */
export function Bars({ label, times, series, step, show, whole }) {
  const box = useRef(null);
  const [theme, setTheme] = useState(0);
  const [at, setAt] = useState(null);
  useTheme(setTheme);
  useEffect(() => {
    const element = box.current;
    const plot = new uPlot(options(element, { series, step, show, whole, onPoint: setAt }), [times, ...stack(series)], element);
    const watch = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      plot.destroy();
    };
  }, [times, series, theme]);

  const now = at === null ? null : moment(times[at], step);
  return html`<figure class="chart"><figcaption><span class="hidden">${label}</span>
      <ul>${series.map((s, i) => html`<li key=${s.name}><i class=${`series-${i + 1}`}></i>${s.name}${at === null ? "" : html` <b>${show(s.values[at])}</b>`}</li>`)}</ul>
      <time>${now ?? ""}</time></figcaption>
    <div ref=${box} class="plot" role="img" aria-label=${`${label}; the table below has the numbers`}></div></figure>`;
}

/** Count the changes of the theme, after which a canvas is drawn anew. */
function useTheme(setTheme) {
  useEffect(() => {
    const changed = () => setTheme((n) => n + 1);
    const system = matchMedia("(prefers-color-scheme: dark)");
    addEventListener("atoll:theme", changed);
    system.addEventListener("change", changed);
    return () => {
      removeEventListener("atoll:theme", changed);
      system.removeEventListener("change", changed);
    };
  }, []);
}

function moment(seconds, step) {
  const when = new Date(seconds * 1000);
  return step < 86400 ? when.toLocaleString("en", { weekday: "short", hour: "2-digit", minute: "2-digit", hour12: false, timeZone: "UTC" })
    : when.toLocaleDateString("en", { weekday: "short", month: "short", day: "numeric", timeZone: "UTC" });
}

/** The tallest first, so that shorter bars are painted over it. */
function stack(series) {
  const sums = series.map((s) => [...s.values]);
  for (let i = sums.length - 2; i >= 0; i--) sums[i] = sums[i].map((x, t) => x + sums[i + 1][t]);
  return sums;
}

function options(element, { series, step, show, whole, onPoint }) {
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `12px ${style.fontFamily}` };
  const bars = uPlot.paths.bars({ size: [0.72, 46], align: 1, radius: 0.08 });
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false } },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
    scales: { x: { range: (_, low, high) => [low, high + step] }, y: { range: (_, __, high) => [0, (high || 1) * 1.08] } },
    axes: [
      { ...axis, grid: { show: false }, space: 56, size: 34, values: (_, ticks) => ticks.map((t) => tick(t, step)) },
      { ...axis, size: 66, ...(whole ? { incrs: WHOLE } : {}), values: (_, ticks) => ticks.map(show) },
    ],
    series: [{}, ...series.map((_, i) => ({ paths: bars, fill: colour(`--series-${i + 1}`), width: 0, points: { show: false } }))],
    hooks: { setCursor: [(plot) => onPoint(plot.cursor.idx ?? null)] },
  };
}

function tick(seconds, step) {
  const when = new Date(seconds * 1000);
  return step < 86400 ? when.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false, timeZone: "UTC" })
    : when.toLocaleDateString("en", { month: "short", day: "numeric", timeZone: "UTC" });
}

/** Curves over how far a run is, each with points of its own. @param props.curves [{name, points: [[x, y]]}] */
export function Lines({ label, curves, show }) {
  const box = useRef(null);
  const [theme, setTheme] = useState(0);
  const [at, setAt] = useState(null);
  useTheme(setTheme);
  const data = uPlot.join(curves.map(({ points }) => [points.map(([x]) => x), points.map(([, y]) => y)]));
  const now = useRef(data);
  now.current = data;
  const names = curves.map((c) => c.name).join("\n");
  const plot = useRef(null);
  useEffect(() => {
    const element = box.current;
    plot.current = new uPlot(curveOptions(element, { count: curves.length, show, onPoint: setAt }), now.current, element);
    const watch = new ResizeObserver(() => plot.current.setSize({ width: element.clientWidth, height: HEIGHT }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      plot.current.destroy();
    };
  }, [names, label, theme]);
  useEffect(() => plot.current.setData(now.current), [curves]);

  const value = (i) => data[i + 1].slice(0, at + 1).findLast((y) => y !== null && y !== undefined);
  return html`<figure class="chart"><figcaption><span class="hidden">${label}</span>
      <ul>${curves.map((c, i) => html`<li key=${c.name}><i class=${`series-${i + 1}`}></i>${c.name}${at === null || value(i) === undefined ? "" : html` <b>${show(value(i))}</b>`}</li>`)}</ul>
      <time>${at === null ? "" : show(data[0][at])}</time></figcaption>
    <div ref=${box} class="plot" role="img" aria-label=${`${label}; the table below has the latest numbers`}></div></figure>`;
}

function curveOptions(element, { count, show, onPoint }) {
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `12px ${style.fontFamily}` };
  const line = (i) => ({ stroke: colour(`--series-${i + 1}`), width: 2, spanGaps: true, points: { show: false } });
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false } },
    scales: { x: { time: false } },
    axes: [{ ...axis, grid: { show: false }, size: 34, values: (_, ticks) => ticks.map(show) }, { ...axis, size: 66, values: (_, ticks) => ticks.map(show) }],
    series: [{}, ...Array.from({ length: count }, (_, i) => line(i))],
    hooks: { setCursor: [(plot) => onPoint(plot.cursor.idx ?? null)] },
  };
}
