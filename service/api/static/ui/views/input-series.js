// A time series: pasted numbers or a CSV. It is scored whole, point by point, and one window of it is looked at closely.
import { Card, Failure, html, useEffect, useState } from "../parts/base.js";
import { call } from "../parts/api.js";
import { LineChart } from "../parts/charts.js";
import { cellOf, decimalMarks, parseCsv, textOfFile } from "../parts/csv.js";
import { count, list, number, percent, plural } from "../parts/words.js";

const PAUSE_MS = 250;
const isNumber = (cell) => cell.trim() !== "" && Number.isFinite(Number(cell));
const read = (cell) => (isNumber(cell) ? Number(cell) : null);

/** Points of a text, each with a number for every channel: by the names in its first line, or as they come. */
export function pointsOf(text, channels) {
  const records = parseCsv(text.replace(/^\uFEFF/, "").trim()).map(({ cells }) => cells);
  const head = records[0]?.map((cell) => cell.trim()) ?? [];
  if (channels.every((name) => head.includes(name))) {
    const columns = channels.map((name) => records.slice(1).map((cells) => cells[head.indexOf(name)] ?? ""));
    const marks = decimalMarks(columns);
    const values = columns.map((cells, at) => cells.map((cell) => cellOf(cell, "numeric", marks[at])));
    return records.slice(1).map((_, row) => values.map((column) => (typeof column[row] === "number" ? column[row] : null)));
  }
  const lines = records.map((cells) => cells.join(" ").trim().split(/[\s,;]+/).filter(Boolean));
  const points = channels.length === 1 ? lines.flat().map((cell) => [cell]) : lines;
  const body = points[0]?.some((cell) => !isNumber(cell) && cell.toLowerCase() !== "nan") ? points.slice(1) : points;
  const wrong = body.findIndex((cells) => cells.length !== channels.length || cells.some((cell) => !isNumber(cell) && cell.toLowerCase() !== "nan"));
  if (wrong >= 0) throw new Error(`Point ${count(wrong + 1)} is not ${plural(channels.length, "number")}. A first line may name the columns: ${channels.join(", ")}.`);
  return body.map((cells) => cells.map(read));
}

const textOf = (points) => points.map((point) => point.map((each) => (each === null ? "NaN" : Number(each.toPrecision(6)))).join(", ")).join("\n");

export default function SeriesInput({ schema, samples, start, base, onRow, isScored }) {
  const steps = schema.row_shape[0];
  const { channels } = schema;
  const [text, setText] = useState(() => (start ?? samples[0] ? textOf(start ?? samples[0]) : ""));
  const [sample, setSample] = useState(0);
  const [problem, setProblem] = useState(null);
  const [scored, setScored] = useState(null);
  const [begin, setBegin] = useState(0);
  const look = (points, at) => { setBegin(at); onRow(points.slice(at, at + steps)); };
  const run = async (signal) => {
    setProblem(null);
    if (!text.trim()) return;
    try {
      const points = pointsOf(text, channels);
      if (points.length < steps) throw new Error(`The model looks at ${plural(steps, "point")} at a time; here ${points.length === 1 ? "is 1" : `are ${count(points.length)}`}.`);
      // Points may not be calibrated where windows are: a window by itself can be looked at.
      const answer = isScored ? await call(`${base}/anomaly-score`, { method: "POST", body: { series: points }, signal }).catch((refusal) => { if (refusal.status === 409) return null; throw refusal; }) : null;
      if (!answer) {
        setScored(null);
        look(points, 0);
        return;
      }
      const worst = answer.scores.indexOf(Math.max(...answer.scores));
      setScored({ points, ...answer });
      look(points, Math.max(0, Math.min(points.length - steps, worst - Math.floor(steps / 2))));
    } catch (refusal) {
      if (refusal.name === "AbortError") return;
      setScored(null);
      setProblem(Object.assign(refusal, { title: refusal.title ?? "That is no series for this model" }));
    }
  };
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(() => run(abort.signal), PAUSE_MS);
    return () => { clearTimeout(timer); abort.abort(); };
  }, [text]);
  const takeSample = () => { const next = (sample + 1) % samples.length; setSample(next); setText(textOf(samples[next])); };
  const spoil = () => {
    const points = pointsOf(text, channels);
    const channel = Math.floor(Math.random() * channels.length);
    const values = points.map((point) => point[channel]).filter((each) => each !== null);
    const at = Math.floor(Math.random() * points.length);
    points[at] = points[at].map((each, place) => (place === channel ? (each ?? 0) + 2 * (Math.max(...values) - Math.min(...values) || 1) : each));
    setText(textOf(points));
  };
  return html`<${Card} title="The series" aside=${html`<span class="small muted">${plural(steps, "point")} at a time</span>`}>
    <div class="stack"><div class="field"><label for="series">Paste readings${channels.length > 1 ? `, ${plural(channels.length, "number")} a line` : ", oldest first"}</label>
        <textarea id="series" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
        <span class="hint">${channels.length > 1 ? `${list(channels)}, oldest first` : channels[0]}; or a CSV whose first line names ${channels.length > 1 ? "them" : "it"}</span></div>
      <div class="row">${samples.length > 0 && html`<button type="button" class="button small" onClick=${takeSample}>Another sample</button>`}<button type="button" class="button small" disabled=${!scored} onClick=${spoil}>Spoil one point</button>
        <label class="button small">From a file<input class="sr" type="file" accept=".csv,.txt,text/*" onChange=${async (event) => event.target.files[0] && setText(await textOfFile(event.target.files[0]))} /></label></div>
      <${Failure} problem=${problem} />
      ${scored && html`<${Points} scored=${scored} steps=${steps} begin=${begin} onBegin=${(at) => look(scored.points, at)} />`}
    </div><//>`;
}

/** The score of every point, and which window is shown beside it. */
function Points({ scored, steps, begin, onBegin }) {
  const { points, scores, threshold } = scored;
  const flagged = scored.is_anomaly.filter(Boolean).length;
  const at = points.map((_, place) => place + 1);
  const positive = threshold > 0 && scores.every((score) => score > 0);
  return html`<div class="stack"><p><b>${plural(flagged, "point")} of ${count(points.length)} flagged</b> (${percent(flagged / points.length)}; ${percent(scored.false_alarm_rate)} would be by mistake if all were ordinary).</p>
    <${LineChart} label=${`Score of each point; the greatest is ${number(Math.max(...scores))}, the threshold of points ${number(threshold)}.`} x=${at} xLabel="point" height=${180} logarithmic=${positive} marks=${[begin + 1, begin + steps]}
      series=${[{ label: "score", values: scores, tone: "--chart-1" }, { label: "threshold of points", values: at.map(() => threshold), tone: "--chart-2", dashed: true }]} />
    ${points.length > steps && html`<div class="field"><label for="window">Window that is looked at: points ${count(begin + 1)} to ${count(begin + steps)}</label>
      <input id="window" type="range" min="0" max=${points.length - steps} value=${begin} onInput=${(event) => onBegin(Number(event.target.value))} /></div>`}</div>`;
}
