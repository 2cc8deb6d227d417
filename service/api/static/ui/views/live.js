// Live: what the service does now, read every few seconds while somebody looks.
import { Card, Failure, Loading, Tile, html, useEffect, useMemo, useState } from "../parts/base.js";
import { call, modelPath } from "../parts/api.js";
import { LineChart } from "../parts/charts.js";
import { count, date, featureName, number, percent, plural, portion, time } from "../parts/words.js";

const INTERVAL_MS = 5000;
const STAGES = ["decode", "queue", "model", "encode"];
const TONES = ["--chart-1", "--chart-2", "--chart-3", "--chart-4"];
const MAX_FEATURES = 12;
/** Population stability index: the customary limits of a shift and of a large one. */
const SHIFT = 0.1;
const LARGE_SHIFT = 0.25;
/** Of fewer rows the index says nothing: a tenth of each bin would be a row or two. */
const MIN_SAMPLED = 100;

/** Reads again and again while the page is seen; one request at a time. */
function useWatch(read, wants) {
  const [state, setState] = useState({});
  useEffect(() => {
    let timer, stopped = false;
    const abort = new AbortController();
    const turn = async () => {
      if (!document.hidden) {
        try {
          const value = await read(abort.signal);
          if (!stopped) setState({ value });
        } catch (problem) {
          if (!stopped && problem.name !== "AbortError") setState((before) => ({ ...before, problem }));
        }
      }
      if (!stopped) timer = setTimeout(turn, INTERVAL_MS);
    };
    turn();
    return () => { stopped = true; abort.abort(); clearTimeout(timer); };
  }, wants);
  return state;
}

export default function Live({ path }) {
  const { value, problem } = useWatch(async (signal) => {
    const [activity, listed] = await Promise.all([call("activity", { signal }), call("models", { signal })]);
    return { activity, listed };
  }, []);
  const [chosen, setChosen] = useState(path[0]);
  return html`<div class="head"><h1>Live</h1><p class="lead">The last quarter of an hour of this service, read every five seconds.</p></div>
    <div class="stack">
      <${Failure} problem=${problem} />
      ${!value ? !problem && html`<${Loading} what="Reading the service" />` : html`
        <${Tiles} activity=${value.activity} />
        <div class="two"><${Traffic} activity=${value.activity} /><${Latency} activity=${value.activity} /></div>
        <${AlertRate} activity=${value.activity} />
        <${Alerts} activity=${value.activity} />
        <${DriftOf} models=${value.listed.models} chosen=${chosen ?? value.listed.default_model ?? value.listed.models[0]?.name} onChoose=${setChosen} />`}
    </div>`;
}

/** The last minute. */
const RECENT = 12;
const recent = (values) => values.slice(-RECENT);
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);
const sum = (values) => values.reduce((total, value) => total + value, 0);

function Tiles({ activity }) {
  const outcomes = activity.requests_per_s;
  const all = mean(recent(totals(outcomes)));
  const bad = mean(recent(outcomes.failed)) + mean(recent(outcomes.refused));
  const p50 = recent(activity.latency.request.p50_ms).filter((value) => value !== null);
  const p99 = recent(activity.latency.request.p99_ms).filter((value) => value !== null);
  const scored = sum(activity.scored_rows);
  return html`<dl class="tiles">
    <${Tile} name="Requests" note="a second, last minute">${number(all, 3)}<//>
    <${Tile} name="Rows" note="a second, last minute">${number(mean(recent(activity.rows_per_s)), 3)}<//>
    <${Tile} name="Median latency" note=${p99.length ? `99 % within ${number(Math.max(...p99), 3)} ms` : "no requests yet"}>${p50.length ? `${number(mean(p50), 3)} ms` : "–"}<//>
    <${Tile} name="Flagged" note=${`of ${plural(scored, "scored row")}`}>${scored ? percent(sum(activity.anomalies) / scored) : "–"}<//>
    <${Tile} name="Failed or refused" note="of requests, last minute">${all ? percent(bad / all) : "–"}<//>
  </dl>`;
}

function totals(outcomes) {
  return outcomes.ok.map((_, at) => Object.values(outcomes).reduce((total, values) => total + values[at], 0));
}

function Empty() {
  return html`<p class="empty small">Nothing has happened yet. This fills as requests come.</p>`;
}

function Traffic({ activity }) {
  const outcomes = activity.requests_per_s;
  const series = useMemo(() => [
    { label: "answered", values: outcomes.ok, tone: "--chart-1", fill: true }, { label: "rejected as wrong", values: outcomes.rejected, tone: "--chart-2" },
    { label: "refused for load", values: outcomes.refused, tone: "--chart-4" }, { label: "failed", values: outcomes.failed, tone: "--bad" },
  ], [activity]);
  return html`<${Card} title="Requests a second">${activity.at.length < 2 ? html`<${Empty} />` : html`<${LineChart} label="Requests a second, by what became of them" x=${activity.at} isTime=${true} fromZero=${true} series=${series} height=${190} />`}<//>`;
}

function Latency({ activity }) {
  const [level, setLevel] = useState("p99_ms");
  const series = useMemo(() => STAGES.map((stage, at) => ({ label: stage, values: activity.latency[stage][level], tone: TONES[at] })), [activity, level]);
  return html`<${Card} title="Latency by stage, ms" aside=${html`<label class="sr" for="level">Quantile</label><select id="level" value=${level} onChange=${(event) => setLevel(event.target.value)}><option value="p50_ms">median</option><option value="p99_ms">99th percentile</option></select>`}>
    ${activity.at.length < 2 ? html`<${Empty} />` : html`<${LineChart} label="Time of requests by stage, in milliseconds" x=${activity.at} isTime=${true} fromZero=${true} series=${series} height=${190} />`}<//>`;
}

function AlertRate({ activity }) {
  const series = useMemo(() => [{ label: "flagged", values: activity.scored_rows.map((scored, at) => (scored ? activity.anomalies[at] / scored : null)), tone: "--chart-2", fill: true }], [activity]);
  return html`<${Card} title="Share of scored rows that is flagged">${sum(activity.scored_rows) === 0 ? html`<p class="empty small">No rows were scored in the last quarter of an hour.</p>`
    : html`<${LineChart} label="Share of scored rows that is flagged" x=${activity.at} isTime=${true} fromZero=${true} format=${(share) => percent(share)} series=${series} height=${190} />`}<//>`;
}

function Alerts({ activity }) {
  const [model, setModel] = useState("");
  const { alerts } = activity;
  const counts = new Map();
  for (const alert of alerts) counts.set(alert.model, (counts.get(alert.model) ?? 0) + 1);
  const shown = alerts.filter((alert) => !model || alert.model === model);
  const kept = alerts.some(({ values }) => values !== null);
  const picker = counts.size > 0 && html`<label class="sr" for="alert-model">Model of the alerts</label><select id="alert-model" value=${model} onChange=${(event) => setModel(event.target.value)}>
    <option value="">all models (${count(alerts.length)})</option>${[...counts].sort().map(([name, amount]) => html`<option value=${name}>${name} (${count(amount)})</option>`)}</select>`;
  return html`<${Card} title="Last alerts" aside=${picker}>${!alerts.length ? html`<p class="empty small">No row was flagged since the service started.</p>` : html`
    <div class="scroll" tabindex="0" role="region" aria-label="Last alerts" style=${{ maxHeight: "340px", overflowY: "auto" }}><table><thead><tr><th scope="col">When</th><th scope="col">Model</th><th scope="col">Request, row</th><th scope="col" class="right">Score</th><th scope="col" class="right">p-value</th><th scope="col">Mostly because of</th>${kept && html`<th scope="col"><span class="sr">The row</span></th>`}</tr></thead>
      <tbody>${shown.map((alert) => html`<tr><td class="nowrap" title=${date(alert.at)}>${time(alert.at)}</td><td>${alert.model} <span class="muted">${alert.version}</span></td><td><code class="small">${alert.request_id ?? "–"}</code>, row ${count(alert.row)}</td><td class="right number">${number(alert.score)}</td><td class="right number">${number(alert.p_value, 2)}</td>
        <td>${alert.columns === null ? html`<span class="muted">–</span>` : alert.columns.map((column) => html`<div class="small">${Array.isArray(column.feature) ? `place ${column.feature.map((index) => index + 1).join(", ")}` : typeof column.feature === "number" ? `value ${column.feature + 1}` : column.feature} <span class="muted">${portion(column.share)}${column.observed === undefined ? "" : `: ${number(column.observed)}, expected ${number(column.expected)}`}</span></div>`)}</td>
        ${kept && html`<td class="right">${alert.values !== null && html`<a class="button small" href=${`#/try/${[alert.model, alert.version, alert.request_id, alert.row].map(encodeURIComponent).join("/")}`}>Open<span class="sr"> row ${alert.row} of request ${alert.request_id}</span></a>`}</td>`}</tr>`)}</tbody></table></div>
    <p class="small muted" style=${{ marginTop: "8px" }}>${plural(shown.length, "alert")} kept, of ${plural(sum(activity.anomalies), "row")} of all models that were flagged in the last quarter of an hour. Rows are counted from 0 in their request. The values of the rows are not kept${kept ? " longer than these alerts" : ""}.</p>`}<//>`;
}

async function driftOf(model, signal) {
  const [drift, { version }] = await Promise.all([call(`${modelPath(model)}/drift?histograms=true`, { signal }), call(modelPath(model), { signal })]);
  return { ...drift, schema: version?.input };
}

/** Features without names are numbered through the whole row. */
function nameOf({ name }, schema) {
  if (typeof name === "string" || !schema || schema.row_shape.length === 1) return featureName(schema ?? { kind: "tabular" })(name);
  const place = schema.row_shape.toReversed().reduce(({ rest, found }, size) => ({ rest: Math.floor(rest / size), found: [rest % size, ...found] }), { rest: name, found: [] }).found;
  return featureName(schema)(place);
}

function DriftOf({ models, chosen, onChoose }) {
  const { value, problem } = useWatch((signal) => (chosen ? driftOf(chosen, signal) : Promise.resolve(null)), [chosen]);
  const unknown = chosen !== undefined && !models.some(({ name }) => name === chosen);
  const picker = html`<label class="sr" for="drift-model">Model</label><select id="drift-model" value=${unknown ? "" : chosen} onChange=${(event) => onChoose(event.target.value)}>${unknown && html`<option value="">choose a model</option>`}${models.map(({ name }) => html`<option value=${name}>${name}</option>`)}</select>`;
  const fresh = value?.model === chosen;
  return html`<${Card} title="Drift from the training rows" aside=${picker}>
    ${unknown ? html`<p class="message bad" role="alert">There is no model “${chosen}”.</p>` : problem && !fresh ? html`<p class="muted">${problem.message}</p>` : !fresh ? html`<${Loading} />` : html`<${Drift} key=${`${value.model}/${value.version}`} drift=${value} />`}<//>`;
}

/** Whether more rows are flagged than the version was calibrated for: twice as many, and by more than chance. */
function alertsMoved({ alert_rate: rate, false_alarm_rate: nominal, scored_rows: rows }) {
  return rate > 2 * nominal && rate - nominal > 3 * Math.sqrt((nominal * (1 - nominal)) / rows);
}

function Drift({ drift }) {
  const [open, setOpen] = useState(null);
  if (!drift.scored_rows) return html`<p class="muted">Version ${drift.version} has scored no rows since it was loaded.</p>`;
  if (drift.sampled_rows < MIN_SAMPLED) return html`<p class="muted">Version ${drift.version} has scored ${plural(drift.scored_rows, "row")} since ${date(drift.since)}. Drift is shown from ${MIN_SAMPLED} rows on.</p>`;
  const features = [...drift.features].sort((a, b) => b.psi - a.psi);
  const moved = [drift.score, ...features].some(({ psi }) => psi > LARGE_SHIFT);
  return html`<div class="stack"><p>Version ${drift.version} has scored ${plural(drift.scored_rows, "row")} since ${date(drift.since)}; <b>${percent(drift.alert_rate)}</b> were flagged, where ${percent(drift.false_alarm_rate)} are to be expected of ordinary rows.
      ${moved && (alertsMoved(drift) ? " Rows have moved far, and more of them are flagged: if they are right and will stay so, train again on new rows." : " Rows have moved far, but no more of them are flagged than were to be expected: nothing needs to be done.")}</p>
    <div class="bars">${[{ ...drift.score, name: "the score itself" }, ...features.slice(0, MAX_FEATURES)].map((feature) => html`<div class="line" key=${feature.name}><button type="button" class="name small disclose" aria-expanded=${open === feature.name ? "true" : "false"} onClick=${() => setOpen(open === feature.name ? null : feature.name)}>${nameOf(feature, drift.schema)}</button>
      <div class="track"><div class=${`fill ${feature.psi > SHIFT ? "" : "cool"}`} style=${{ width: `${100 * Math.min(1, feature.psi / (2 * LARGE_SHIFT))}%` }}></div></div><span class="number small right">${number(feature.psi, 2)}</span>
      ${(feature.psi > SHIFT || Math.abs(feature.missing - feature.reference_missing) > 0.05) && html`<span class="why">${feature.psi > LARGE_SHIFT ? "has moved far" : feature.psi > SHIFT ? "has moved" : ""}${Math.abs(feature.missing - feature.reference_missing) > 0.05 ? ` missing in ${percent(feature.missing)} of rows, ${percent(feature.reference_missing)} in training` : ""}</span>`}
      ${open === feature.name && feature.histogram && html`<${SideBySide} name=${nameOf(feature, drift.schema)} feature=${feature} isScore=${feature.name === "the score itself"} />`}</div>`)}</div>
    <p class="small muted">Population stability index over ${plural(drift.sampled_rows, "sampled row")}: over ${SHIFT} is a shift, over ${LARGE_SHIFT} a large one. Choose a name to see where its values lie. Times are left out: they always move on.${features.length > MAX_FEATURES ? ` The ${MAX_FEATURES} features that moved most of ${count(features.length)}.` : ""}</p></div>`;
}

/** The bins of a histogram in words. */
function binsOf({ edges, labels, training }) {
  if (labels.length) return [...labels, "others"];
  if (!edges.length) return ["all values"];
  return training.map((_, at) => (at === 0 ? `up to ${number(edges[0], 3)}` : at === edges.length ? `over ${number(edges.at(-1), 3)}` : `${number(edges[at - 1], 3)} to ${number(edges[at], 3)}`));
}

/** Training and live rows over the same bins. */
function SideBySide({ name, feature, isScore }) {
  const { histogram } = feature;
  const rows = binsOf(histogram).map((bin, at) => [bin, histogram.training[at], histogram.live[at]]);
  const missing = feature.missing || feature.reference_missing ? [["missing", feature.reference_missing, feature.missing]] : [];
  const largest = Math.max(...[...rows, ...missing].flatMap(([, ...shares]) => shares), 1e-9);
  const before = isScore ? "Calibration" : "Training";
  return html`<table class="beside"><caption class="sr">${name}: share of the rows in each range, in ${before.toLowerCase()} and live</caption>
    <thead><tr><th scope="col">${isScore ? "Score" : "Value"}</th><th scope="col" aria-hidden="true"></th><th scope="col" class="right"><span class="dot cool"></span>${before}</th><th scope="col" class="right"><span class="dot"></span>Live</th></tr></thead>
    <tbody>${[...rows, ...missing].map(([bin, trained, live]) => html`<tr><th scope="row">${bin}</th><td aria-hidden="true"><div class="fill cool" style=${{ width: `${(100 * trained) / largest}%` }}></div><div class="fill" style=${{ width: `${(100 * live) / largest}%` }}></div></td>
      <td class="right number">${percent(trained)}</td><td class="right number">${percent(live)}</td></tr>`)}</tbody></table>`;
}
