// The workbench of a series: a CSV or pasted readings with their score on one time axis, what is flagged, and the window that is looked at.
import { Card, Failure, html, useEffect, useMemo, useState } from "../parts/base.js";
import { call } from "../parts/api.js";
import { Measured } from "../parts/alarms.js";
import { LineChart } from "../parts/charts.js";
import { csvText, save, textOfFile } from "../parts/csv.js";
import { duration, isIncomplete, seriesOf, stretchesOf, wholeParts } from "../parts/series.js";
import { count, list, number, outOf, percent, plural, portion, timeText } from "../parts/words.js";

const PAUSE_MS = 250;
const LONG_TEXT = 200_000;
const MOST_PARTS = 60;
const MOST_LISTED = 200;
const EXPLAINED_STRETCHES = 40;
const EXPLAINED_FEATURES = 200;
const CHANNELS_DRAWN = 4;

const textOf = (points) => points.map((point) => point.map((each) => (each === null ? "NaN" : Number(each.toPrecision(6)))).join(", ")).join("\n");

export default function SeriesInput({ schema, samples, start, base, onRow, onJudge, isScored, calibration, detail }) {
  const steps = schema.row_shape[0];
  const { channels } = schema;
  const [text, setText] = useState(() => (start ?? samples[0] ? textOf(start ?? samples[0]) : ""));
  const [sample, setSample] = useState(0);
  const [file, setFile] = useState(null);
  const [problem, setProblem] = useState(null);
  const [scored, setScored] = useState(null);
  const stepS = calibration?.step_s ?? null;
  const run = async (signal) => {
    setProblem(null);
    if (!text.trim()) return;
    try {
      const series = seriesOf(text, channels, stepS);
      if (series.points.length < steps) throw new Error(`The model looks at ${plural(steps, "point")} at a time; here ${series.points.length === 1 ? "is 1" : `are ${count(series.points.length)}`}.`);
      const found = isScored ? await scoresOf(base, series, schema, signal) : null;
      setScored(found && { ...series, ...found });
      // Points may not be calibrated where windows are: a window by itself can be looked at.
      if (!found) { onJudge(null); onRow(series.points.slice(0, steps)); }
    } catch (refusal) {
      if (refusal.name === "AbortError") return;
      setScored(null);
      onJudge(null);
      setProblem(Object.assign(refusal, { title: refusal.title ?? "That is no series for this model" }));
    }
  };
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(() => run(abort.signal), PAUSE_MS);
    return () => { clearTimeout(timer); abort.abort(); };
  }, [text]);
  const take = (next, name = null) => { setFile(name); setText(next); };
  const takeSample = () => { const next = (sample + 1) % samples.length; setSample(next); take(textOf(samples[next])); };
  const spoil = () => {
    const points = scored.points.map((point) => [...point]);
    const channel = Math.floor(Math.random() * channels.length);
    const values = points.map((point) => point[channel]).filter((each) => each !== null);
    const at = Math.floor(Math.random() * points.length);
    points[at][channel] = (points[at][channel] ?? 0) + 2 * (Math.max(...values) - Math.min(...values) || 1);
    take(textOf(points));
  };
  const isLong = text.length > LONG_TEXT;
  return html`<${Card} title="The series" aside=${html`<span class="small muted">${plural(steps, "point")} at a time${stepS ? `, one every ${duration(stepS)}` : ""}</span>`}>
    <div class="stack"><div class="field"><label for="series">Paste readings${channels.length > 1 ? `, ${plural(channels.length, "number")} a line` : ", oldest first"}</label>
        <textarea id="series" spellcheck="false" readonly=${isLong} value=${isLong ? `${text.slice(0, 1000)}\n…` : text} onInput=${(event) => take(event.target.value)}></textarea>
        <span class="hint">${file && `From ${file}. `}${channels.length > 1 ? `${list(channels)}, oldest first` : channels[0]}; or a CSV whose first line names ${channels.length > 1 ? "them" : "it"}; a column of times makes the axis</span></div>
      <div class="row"><label class="button small">From a file<input class="sr" type="file" accept=".csv,.txt,text/*" onChange=${async (event) => { const [chosen] = event.target.files; if (chosen) take(await textOfFile(chosen), chosen.name); }} /></label>
        ${samples.length > 0 && html`<button type="button" class="button small" onClick=${takeSample}>Another sample</button>`}<button type="button" class="button small" disabled=${!scored} onClick=${spoil}>Spoil one point</button>
        ${isLong && html`<button type="button" class="button small" onClick=${() => take("")}>Clear</button>`}</div>
      <${Failure} problem=${problem} /></div><//>
    ${scored && html`<${Workbench} key=${scored.answered} scored=${scored} schema=${schema} base=${base} calibration=${calibration?.points} alarms=${detail.metrics.point_false_alarms} canExplain=${detail.signatures.explain !== undefined} onRow=${onRow} onJudge=${onJudge} />`}`;
}

let answered = 0;

/** The score of every point; null where there is no reading, or one is missing to a model that never saw a gap. */
async function scoresOf(base, { points }, schema, signal) {
  const steps = schema.row_shape[0];
  const isWhole = schema.may_be_missing || !points.some(isIncomplete);
  const parts = isWhole ? [[0, points.length]] : wholeParts(points).filter(([from, to]) => to - from >= steps);
  if (!parts.length) throw new Error(`The model never saw a gap in training, and no part of this series has ${plural(steps, "reading")} without one.`);
  if (parts.length > MOST_PARTS) throw new Error(`The model never saw a gap in training, and this series is in ${count(parts.length)} parts; train on a series with gaps.`);
  const found = { scores: points.map(() => null), pValues: points.map(() => null), flags: points.map(() => false) };
  let answer;
  for (const [from, to] of parts) {
    // Versions without a calibration of points answer 409.
    answer = await call(`${base}/anomaly-score`, { method: "POST", body: { series: points.slice(from, to) }, signal }).catch((refusal) => { if (refusal.status === 409) return null; throw refusal; });
    if (!answer) return null;
    for (let at = from; at < to; at += 1) {
      if (points[at].every((value) => value === null)) continue;
      found.scores[at] = answer.scores[at - from];
      found.pValues[at] = answer.p_values[at - from];
      found.flags[at] = answer.is_anomaly[at - from];
    }
  }
  answered += 1;
  return { ...found, parts, isWhole, threshold: answer.threshold, rate: answer.false_alarm_rate, answered };
}

function Workbench({ scored, schema, base, calibration, alarms, canExplain, onRow, onJudge }) {
  const steps = schema.row_shape[0];
  const { channels } = schema;
  const { points, scores, times } = scored;
  const [position, setPosition] = useState(null);
  const [chosen, setChosen] = useState(null);
  const [range, setRange] = useState(null);
  const [begin, setBegin] = useState(null);
  const chosenRate = position === null ? { threshold: scored.threshold, false_alarm_rate: scored.rate } : calibration.thresholds[position];
  const { threshold, false_alarm_rate: rate } = chosenRate;
  // The version's own threshold is the service's to apply; JSON has its scores with as many digits as tell them apart.
  const isFlagged = useMemo(() => (position === null ? (at) => scored.flags[at] : (at) => scores[at] !== null && scores[at] > threshold), [scored, position]);
  const stretches = useMemo(() => stretchesOf(scored, isFlagged), [scored, isFlagged]);
  const listed = useMemo(() => (stretches.length <= MOST_LISTED ? stretches : [...stretches].sort((a, b) => b.score - a.score).slice(0, MOST_LISTED).sort((a, b) => a.first - b.first)), [stretches]);
  const flagged = useMemo(() => scored.places.filter(isFlagged).length, [scored, isFlagged]);
  const shares = useShares(base, scored, schema, stretches, canExplain);

  const placeOf = (at) => scored.start + at * scored.step;
  const x = useMemo(() => points.map((_, at) => (times ? placeOf(at) : at + 1)), [scored]);
  const pointAt = (value) => Math.round(times ? (value - scored.start) / scored.step : value - 1);
  const inSeconds = scored.step < 60;
  const nameOf = (at) => (times ? timeText(placeOf(at), inSeconds) : `point ${count(at + 1)}`);
  const ofReading = (row) => (times ? timeText(times[row], inSeconds) : `point ${count(row + 1)}`);
  const lasts = ({ first, last, from, to }) => (times ? duration(times[last] - times[first] + scored.step) : plural(to - from + 1, "point"));
  const windowAt = (point) => windowOf(scored, steps, point);

  const worst = useMemo(() => scores.reduce((best, score, at) => (score !== null && (best === null || score > scores[best]) ? at : best), null), [scored]);
  const look = (at) => { setBegin(at); onRow(points.slice(at, at + steps)); };
  useEffect(() => { look(windowAt(worst ?? 0)); }, [scored]);
  useEffect(() => {
    if (begin === null) return;
    onJudge(judgedOf({ begin, steps, scored, isFlagged, threshold, nameOf }));
  }, [begin, isFlagged, scored]);
  const show = (at) => {
    const stretch = stretches[at];
    const around = Math.max(steps, stretch.to - stretch.from + 1);
    setChosen(stretch.first);
    setRange([x[Math.max(0, stretch.from - around)], x[Math.min(x.length - 1, stretch.to + around)]]);
    look(windowAt(stretch.peak));
  };
  const current = stretches.findIndex(({ first }) => first === chosen);
  const zoom = (factor) => {
    const [low, high] = range ?? [x[0], x.at(-1)];
    const [middle, half] = [(low + high) / 2, Math.max(((high - low) / 2) * factor, 2 * (times ? scored.step : 1))];
    const next = [Math.max(x[0], middle - half), Math.min(x.at(-1), middle + half)];
    setRange(next[0] <= x[0] && next[1] >= x.at(-1) ? null : next);
  };

  const bands = useMemo(() => stretches.map((each) => [x[each.from] - scored.step / 2, x[each.to] + scored.step / 2, each.first === chosen]), [stretches, chosen]);
  const positive = threshold > 0 && scores.every((score) => score === null || score > 0);
  const scoreLines = useMemo(() => [{ label: "score", values: scores, tone: "--chart-1" }, { label: "threshold of readings", values: scores.map(() => threshold), tone: "--chart-2", dashed: true }], [scored, threshold]);
  const lines = useMemo(() => channels.map((name, channel) => [{ label: name, values: points.map((point) => point[channel]), tone: "--chart-3" }]), [scored]);
  const atFault = current >= 0 ? shares.get(stretches[current].peak) : null;
  const drawn = useMemo(() => {
    const all = channels.map((_, channel) => channel);
    return (atFault ? all.sort((a, b) => atFault[b] - atFault[a]) : all).slice(0, CHANNELS_DRAWN);
  }, [channels, atFault]);
  const axis = { x, isTime: Boolean(times), isWritten: true, range, onRange: setRange, bands, sync: "series", marks: begin === null ? [] : [x[begin], x[begin + steps - 1]] };
  const greatest = worst === null ? null : scores[worst];
  const gaps = points.filter(isIncomplete).length;

  const saveIt = () => {
    const { names, cells } = scored.readings;
    const lines = cells.map((row, at) => {
      const point = scored.places[at];
      return [...names.map((_, column) => row[column] ?? ""), scores[point] ?? "", scored.pValues[point] ?? "", isFlagged(point)];
    });
    save("scored-series.csv", csvText([[...names, "anomaly_score", "p_value", "is_anomaly"], ...lines]));
  };
  const fault = (stretch) => {
    const found = shares.get(stretch.peak);
    if (!found) return "–";
    const order = channels.map((name, channel) => [name, found[channel]]).sort((a, b) => b[1] - a[1]).filter(([, share], at) => at === 0 || share >= 0.2).slice(0, 3);
    return order.map(([name, share]) => `${name} (${portion(share)})`).join(", ");
  };
  const longest = stretches.reduce((best, each) => (best === null || each.score > best.score ? each : best), null);
  return html`<${Card} title="When it went wrong" aside=${html`<button type="button" class="button small" onClick=${saveIt}>Save as CSV</button>`}><div class="stack">
    <div class=${`found ${stretches.length ? "flagged" : ""}`} role="status"><h3>${stretches.length ? `${plural(stretches.length, "stretch", "stretches")} flagged` : "Nothing is flagged"}</h3>
      <p>${longest && `The strangest: ${ofReading(longest.first)}${longest.last > longest.first ? ` to ${ofReading(longest.last)}` : ""}, ${lasts(longest)}${shares.has(longest.peak) && channels.length > 1 ? `; at fault: ${fault(longest)}` : ""}. `}<b>${plural(flagged, "reading")} of ${count(scored.places.length)} flagged</b> (${percent(flagged / scored.places.length)}; ${percent(rate)} would be by mistake if all were ordinary).</p>
      <p class="small muted">A reading is flagged when its score is over the threshold of readings, ${number(threshold)}${position === null ? ", as autoencoder score and the service flag it" : ", which you chose here"}. Scores are averaged over neighbouring readings: a stretch is wider than its fault, which is about its peak.</p></div>
    ${gaps > 0 && html`<p class="small muted">${plural(gaps, "step")} of ${count(points.length)} ${gaps === 1 ? "has" : "have"} no reading: ${scored.isWhole ? "the lines are broken there" : "the model never saw a gap, so that the parts between gaps are scored one by one, those shorter than a window not at all"}.</p>`}
    <div class="row" role="group" aria-label="Move through the series">
      <button type="button" class="button small" disabled=${!stretches.length || current === 0} onClick=${() => show(current < 0 ? stretches.length - 1 : current - 1)}>Previous stretch</button>
      <button type="button" class="button small" disabled=${!stretches.length || current === stretches.length - 1} onClick=${() => show(current + 1)}>Next stretch</button>
      <button type="button" class="button small" onClick=${() => zoom(0.5)}>Zoom in</button><button type="button" class="button small" disabled=${!range} onClick=${() => zoom(2)}>Zoom out</button>
      <button type="button" class="button small" disabled=${!range} onClick=${() => setRange(null)}>Whole series</button>
      <span class="small muted">${current >= 0 ? `Stretch ${count(current + 1)} of ${count(stretches.length)}. ` : ""}Drag across a chart to zoom.</span></div>
    <div>${drawn.map((channel) => html`<${LineChart} key=${`c${channel}`} label=${`${channels[channel]} over ${times ? "time" : "the points"}`} height=${150} series=${lines[channel]} ...${axis} />`)}
      ${channels.length > CHANNELS_DRAWN && html`<p class="small muted">${CHANNELS_DRAWN} of ${channels.length} channels are drawn${atFault ? ", those most at fault" : "; choose a stretch for those most at fault"}.</p>`}
      <${LineChart} key="score" label=${`Score of each point; the greatest is ${number(greatest)}, the threshold of points ${number(threshold)}. ${plural(stretches.length, "flagged stretch", "flagged stretches")}.`} height=${180} logarithmic=${positive} series=${scoreLines} xLabel=${times ? "" : "point"} ...${axis} /></div>
    ${calibration && html`<${ThresholdOfPoints} calibration=${calibration} alarms=${alarms} position=${position} onPosition=${setPosition} threshold=${threshold} rate=${rate} />`}
    ${listed.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Flagged stretches"><table><thead><tr><th scope="col">Start</th><th scope="col">End</th><th scope="col">Lasts</th><th scope="col" class="right">Readings</th><th scope="col" class="right">Peak score</th><th scope="col">Peak at</th>${canExplain && html`<th scope="col">Channels at fault</th>`}</tr></thead>
      <tbody>${listed.map((each) => html`<tr aria-selected=${each.first === chosen ? "true" : undefined}><th scope="row"><button type="button" class="button small plain nowrap" onClick=${() => show(stretches.indexOf(each))}>${ofReading(each.first)}</button></th><td class="nowrap">${ofReading(each.last)}</td><td class="nowrap">${lasts(each)}</td><td class="right number">${count(each.readings)}</td><td class="right number">${number(each.score)}</td><td class="nowrap">${nameOf(each.peak)}</td>${canExplain && html`<td>${fault(each)}</td>`}</tr>`)}</tbody></table></div>
      ${listed.length < stretches.length && html`<p class="small muted">The ${count(listed.length)} of ${count(stretches.length)} stretches with the highest scores.</p>`}`}
    ${points.length > steps && begin !== null && html`<div class="field"><label for="window">Window that is looked at: ${times ? `${nameOf(begin)} to ${nameOf(begin + steps - 1)}` : `points ${count(begin + 1)} to ${count(begin + steps)}`}</label>
      <input id="window" type="range" min="0" max=${points.length - steps} value=${begin} onInput=${(event) => look(Number(event.target.value))} /></div>`}</div><//>`;
}

/** The first point of a window around a point, within a part that can be scored. */
function windowOf({ parts }, steps, point) {
  const [from, to] = parts.find(([low, high]) => point >= low && point < high) ?? parts[0];
  return Math.max(from, Math.min(to - steps, point - Math.floor(steps / 2)));
}

/** What the rule of readings says of the window that is looked at. */
function judgedOf({ begin, steps, scored, isFlagged, threshold, nameOf }) {
  const inside = scored.places.filter((at) => at >= begin && at < begin + steps);
  const flagged = inside.filter(isFlagged);
  const span = `${nameOf(begin)} to ${nameOf(begin + steps - 1)}`;
  return {
    flagged: flagged.length > 0,
    title: flagged.length ? `${count(flagged.length)} of these ${plural(inside.length, "reading")} flagged` : "None of these readings is flagged",
    words: flagged.length ? `From ${nameOf(flagged[0])} to ${nameOf(flagged.at(-1))}, in the window ${span}` : `In the window ${span} no reading is over the threshold`,
    rule: `The rule of the series above: a reading is flagged when its score is over the threshold of readings, ${number(threshold)}. The score of the window by itself decides nothing here.`,
    stepName: (step) => nameOf(begin + step),
  };
}

/** Share of each channel in the errors of the strangest stretches, by their peaks: of the window around each, as scores are averaged over neighbours. */
function useShares(base, scored, schema, stretches, canExplain) {
  const [shares, setShares] = useState(() => new Map());
  useEffect(() => {
    const steps = schema.row_shape[0];
    const wanted = [...stretches].sort((a, b) => b.score - a.score).slice(0, EXPLAINED_STRETCHES).filter(({ peak }) => !shares.has(peak));
    if (!canExplain || !wanted.length) return undefined;
    const abort = new AbortController();
    const ask = async () => {
      const begins = wanted.map(({ peak }) => windowOf(scored, steps, peak));
      const explain = Math.min(EXPLAINED_FEATURES, schema.row_shape.reduce((product, size) => product * size, 1));
      const instances = begins.map((begin) => scored.points.slice(begin, begin + steps));
      const { contributions } = await call(`${base}/anomaly-score`, { method: "POST", body: { instances, explain }, signal: abort.signal });
      setShares((before) => new Map([...before, ...wanted.map(({ peak }, at) => [peak, channelShares(contributions[at], schema)])]));
    };
    const timer = setTimeout(() => ask().catch((refusal) => { if (refusal.name !== "AbortError") throw refusal; }), PAUSE_MS);
    return () => { clearTimeout(timer); abort.abort(); };
  }, [stretches]);
  return shares;
}

/** The share of each channel in what adds most to a window's score. */
function channelShares(contributions, schema) {
  const found = schema.channels.map(() => 0);
  for (const { feature, share } of contributions) found[Array.isArray(feature) ? feature[1] : 0] += share;
  const total = found.reduce((sum, share) => sum + share, 0) || 1;
  return found.map((share) => share / total);
}

function ThresholdOfPoints({ calibration, alarms, position, onPosition, threshold, rate }) {
  const { thresholds } = calibration;
  const distance = (each) => Math.abs(Math.log(each.false_alarm_rate / rate));
  const at = position ?? thresholds.reduce((best, each, place) => (distance(each) < distance(thresholds[best]) ? place : best), 0);
  const spoken = `${outOf(rate)} ordinary readings would be flagged`;
  return html`<div class="stack"><div class="field"><label for="point-threshold">Threshold of readings: ${number(threshold)} <span class="muted">(false-alarm rate ${percent(rate)})</span></label>
      <input id="point-threshold" type="range" min="0" max=${thresholds.length - 1} value=${at} aria-valuetext=${`Threshold ${number(threshold)}: ${spoken}`} onInput=${(event) => onPosition(Number(event.target.value))} />
      <div class="row small muted"><span>fewer false alarms</span><span style=${{ marginLeft: "auto" }}>catches more</span></div></div>
    <p class="slider-words" aria-live="polite">With this threshold <b>${spoken}</b> by mistake.</p><${Measured} alarms=${alarms} rate=${rate} what="reading" isDependent=${true} />
    ${position !== null && html`<div class="row small"><button type="button" class="button small" onClick=${() => onPosition(null)}>Back to the version's own threshold</button><span class="muted">To use this one, send <code>"false_alarm_rate": ${number(rate, 3)}</code> with your series, or <code>autoencoder score --false-alarm-rate ${number(rate, 3)}</code>.</span></div>`}</div>`;
}
