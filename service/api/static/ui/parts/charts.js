// Lines with uPlot; histograms, which carry marks and words, as SVG.
import uPlot from "../vendor/uplot.js";
import { colour, html, useEffect, useMemo, useRef, useState, useTheme } from "./base.js";
import { number, timeText } from "./words.js";

const NONE = [];
let styled = false;

/** uPlot's own style sheet, when the first chart is drawn. */
function addStyle() {
  if (styled) return;
  styled = true;
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href: new URL("../vendor/uplot.css", import.meta.url).href });
  document.head.append(link);
}

/**
 * Lines over a common x.
 * series: [{label, values, tone?, dashed?, fill?}]; tone is one of the chart colours of the style sheet.
 * range: [from, to] of x that is shown, null for all; onRange is called with one that was dragged. bands: [[from, to, strong?]] of x that are shaded.
 * isWritten: times are shown in UTC, as they were written; sync: charts of one name share their cursor.
 */
export function LineChart({ label, x, series, height = 220, isTime = false, isWritten = false, logarithmic = false, format = number, marks = [], fromZero = false, xLabel, legend = true, range, onRange, bands = NONE, sync }) {
  const element = useRef();
  const theme = useTheme();
  const shape = `${series.map((each) => each.label).join("|")}/${logarithmic}/${theme}/${height}/${isTime}/${marks.join()}`;
  const chart = useRef();
  const shown = useRef();
  shown.current = { range, onRange, bands };
  useEffect(() => {
    addStyle();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "11px system-ui" };
    const box = element.current;
    const size = () => ({ width: Math.max(160, box.clientWidth), height });
    const options = {
      ...size(),
      cursor: { drag: { x: Boolean(onRange), y: false, setScale: false }, ...(sync ? { sync: { key: sync } } : {}) },
      ...(isWritten ? { tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") } : {}),
      legend: { live: true, show: legend },
      scales: {
        x: { time: isTime, ...(range === undefined ? {} : { range: (_, low, high) => shown.current.range ?? [low, high] }) },
        y: { distr: logarithmic ? 3 : 1, range: logarithmic ? undefined : (_, low, high) => spread(fromZero ? Math.min(0, low ?? 0) : low, high) },
      },
      axes: [{ ...axis, label: xLabel, labelSize: 20, labelFont: "11px system-ui", ...(isTime && isWritten ? { values: (_, ticks, _axis, _space, step) => ticks.map((tick) => tickOf(tick, step)) } : {}) }, { ...axis, size: 62, ...(logarithmic ? { splits: (_plot, _axis, low, high) => decades(low, high) } : {}), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) }],
      series: [
        isTime && isWritten ? { label: "time", value: (_, at) => (at === null ? "–" : timeText(at)) } : isTime ? {} : { value: (_, at) => (at === null ? "–" : number(at)) },
        ...series.map(({ label: name, tone = "--chart-1", dashed, fill }, at) => ({
          label: name, stroke: colour(tone), width: 2, dash: dashed ? [6, 4] : undefined, points: { show: series[at].values.length < 30, size: 5 },
          fill: fill ? `${colour(tone)}22` : undefined, value: (_, found) => (found === null ? "–" : format(found)), spanGaps: false,
        })),
      ],
      hooks: { drawClear: [(plot) => drawBands(plot, shown.current.bands)], draw: [(plot) => drawMarks(plot, marks)], setSelect: [(plot) => dragged(plot, shown.current.onRange)] },
    };
    chart.current = new uPlot(options, [x, ...series.map((each) => each.values)], element.current);
    const watch = new ResizeObserver(() => chart.current?.setSize(size()));
    watch.observe(box);
    return () => { watch.disconnect(); chart.current.destroy(); chart.current = null; };
  }, [shape]);
  useEffect(() => { chart.current?.setData([x, ...series.map((each) => each.values)]); }, [x, series, bands, range?.[0], range?.[1]]);
  return html`<div class="chart" ref=${element} role="img" aria-label=${label}></div>`;
}

/** A time on an axis whose lines are so many seconds apart: the day at midnight, else the time of day. */
function tickOf(seconds, step) {
  const day = { day: "numeric", month: "short", timeZone: "UTC" };
  const clock = { hour: "2-digit", minute: "2-digit", second: step < 60 ? "2-digit" : undefined, hourCycle: "h23", timeZone: "UTC" };
  return new Intl.DateTimeFormat("en-GB", seconds % 86_400 ? clock : day).format(seconds * 1000);
}

function spread(low, high) {
  if (low === null || low === undefined || high === null) return [0, 1];
  if (low === high) return [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  return uPlot.rangeNum(low, high, 0.08, true);
}

/** Powers of ten only, thinned out where there are many; uPlot itself draws nine lines to each. */
function decades(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / 5));
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, at) => 10 ** (first + at * step));
}

function dragged(plot, onRange) {
  const { left, width } = plot.select;
  if (!onRange || width < 4) return;
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  onRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
}

function drawBands(plot, bands) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const [from, to, strong] of bands) {
    const [left, right] = [from, to].map((value) => plot.valToPos(value, "x", true));
    ctx.fillStyle = `${colour("--bad")}${strong ? "55" : "26"}`;
    ctx.fillRect(left, bbox.top, Math.max(2 * devicePixelRatio, right - left), bbox.height);
  }
  ctx.restore();
}

function drawMarks(plot, marks) {
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = colour("--muted");
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const mark of marks) {
    const at = plot.valToPos(mark, "x", true);
    ctx.beginPath();
    ctx.moveTo(at, plot.bbox.top);
    ctx.lineTo(at, plot.bbox.top + plot.bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

const HEIGHT = 194;
const FLOOR = 160;

/** Width of an element in pixels, as it changes: text in a drawing must not grow and shrink with it. */
export function useWidth() {
  const element = useRef();
  const [width, setWidth] = useState(600);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.max(200, Math.round(entry.contentRect.width))));
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return [element, width];
}

/** The scores of ordinary rows, the threshold, and where one row's score lies. */
export function ScoreHistogram({ histogram, threshold, score }) {
  const { edges, counts, logarithmic } = histogram;
  const [element, width] = useWidth();
  const { place, low, high } = useMemo(() => scale(histogram, score, width), [histogram, score, width]);
  const tallest = Math.max(...counts, 1);
  const at = (value) => Math.min(width - 2, Math.max(2, place(value)));
  const ticks = logarithmic ? [0, 0.25, 0.5, 0.75, 1].map((part) => low * (high / low) ** part) : [0, 0.25, 0.5, 0.75, 1].map((part) => low + (high - low) * part);
  const words = `Histogram of the scores of ordinary rows, from ${number(low)} to ${number(high)}; the threshold is ${number(threshold)}${score === undefined ? "" : `, this row scores ${number(score)}`}.`;
  const anchor = (position) => (position < 90 ? "start" : position > width - 90 ? "end" : "middle");
  const scoreAt = score === undefined ? 0 : at(score);
  const limitAt = at(threshold);
  return html`<div ref=${element}><svg class="histogram" width=${width} height=${HEIGHT} role="img" aria-label=${words}>
    ${counts.map((amount, bin) => {
      const left = place(edges[bin]), right = place(edges[bin + 1]);
      const tall = amount ? Math.max(2, (amount / tallest) * 118) : 0;
      return html`<rect class=${`bar ${edges[bin] >= threshold ? "over" : ""}`} x=${left + 0.5} y=${FLOOR - tall} width=${Math.max(0.5, right - left - 1)} height=${tall} rx="1" />`;
    })}
    <line class="axis" x1="0" x2=${width} y1=${FLOOR} y2=${FLOOR} />
    ${ticks.map((tick) => html`<text x=${place(tick)} y=${FLOOR + 16} text-anchor=${anchor(place(tick))}>${number(tick, 2)}</text>`)}
    <text x=${width / 2} y=${HEIGHT - 4} text-anchor="middle">anomaly score${logarithmic ? ", logarithmic" : ""}</text>
    <line class="threshold" x1=${limitAt} x2=${limitAt} y1="30" y2=${FLOOR} />
    <text class="threshold-text" x=${limitAt} y="24" text-anchor=${anchor(limitAt)}>threshold</text>
    ${score !== undefined && html`<line class="mark" x1=${scoreAt} x2=${scoreAt} y1="14" y2=${FLOOR} /><circle class="mark-head" cx=${scoreAt} cy=${FLOOR} r="5" />
      <text class="mark-text" x=${scoreAt} y="10" text-anchor=${anchor(scoreAt)}>this row</text>`}
  </svg></div>`;
}

/** Score to x, over the calibration scores and the score to be shown. */
function scale({ edges, logarithmic }, score, width) {
  const low = Math.min(edges[0], score > 0 || !logarithmic ? score ?? edges[0] : edges[0]);
  const high = Math.max(edges.at(-1), score ?? edges[0]) * (logarithmic ? 1.05 : 1);
  const part = logarithmic
    ? (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low)
    : (value) => (value - low) / (high - low || 1);
  return { low, high, place: (value) => part(value) * width };
}
