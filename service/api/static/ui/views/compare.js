// Two versions of one model, side by side: what differs, their losses and scores, and what each says of the same rows.
import { Card, Failure, Loaded, StateBadge, Uncalibrated, html, useEffect, useLoad, useRef, useState } from "../parts/base.js";
import { call, modelPath, versionPath } from "../parts/api.js";
import { LineChart, ScoreHistogram } from "../parts/charts.js";
import { parseCsv, rowsOf, textOfFile } from "../parts/csv.js";
import { Changes, Differences, share } from "../parts/figures.js";
import { ranking } from "../parts/measures.js";
import { count, number, plural } from "../parts/words.js";
import { AliasDialog, CANDIDATE, Shadow } from "./models.js";
import { lossSeries } from "./version.js";

const ROWS_AT_ONCE = 2000;
const MAX_LISTED = 20;

export default function Compare({ path }) {
  const [model, ...versions] = path;
  const numbers = versions.map(Number);
  const link = `#/models/${encodeURIComponent(model ?? "")}`;
  const wrong = model === undefined ? "The address names no model." : versions.length !== 2 || numbers.some((version) => !(Number.isInteger(version) && version > 0)) ? "The address does not name two versions."
    : numbers[0] === numbers[1] ? "The address names the same version twice." : null;
  return html`<div class="head"><nav class="crumbs" aria-label="Where this is"><a href="#/models">Models</a>${model !== undefined && html`<span aria-hidden="true">/</span><a href=${link}>${model}</a>`}<span aria-hidden="true">/</span><span>comparison</span></nav>
      <h1>${wrong ? "Comparison" : `${model}: version ${versions[0]} and version ${versions[1]}`}</h1></div>
    ${wrong ? html`<p class="message bad" role="alert">${wrong} A comparison is <code>#/compare/${model ?? "MODEL"}/1/2</code>: mark two versions in the list of <a href=${link}>${model ?? "a model"}</a>.</p>`
      : html`<${Both} key=${path.join("/")} model=${model} versions=${numbers} />`}`;
}

function Both({ model, versions }) {
  const [change, setChange] = useState(null);
  const state = useLoad(async (signal) => {
    const shown = await call(modelPath(model), { signal });
    const pairs = await Promise.all(versions.map(async (version) => {
      const base = versionPath(model, version);
      const detail = await call(base, { signal });
      const calibration = detail.calibration && await call(`${base}/calibration`, { signal });
      const history = detail.exhibits.includes("history") ? await call(`${base}/history`, { signal }) : null;
      return { base, detail, calibration, history };
    }));
    return { shown, pairs };
  }, [model, ...versions]);
  return html`<${Loaded} state=${state} what="Loading both versions">${({ shown, pairs }) => html`<div class="stack">
      <${Card} title="What differs" aside=${html`<span class="row">${pairs.map(({ detail }) => html`<span class="small muted">${detail.version}</span><${StateBadge} state=${detail.state} reason=${detail.reason} />`)}</span>`}>
        <${Differences} details=${pairs.map(({ detail }) => detail)} />
        <p class="small muted">Errors are comparable only when both versions scale the rows alike, and scores only by their p-values.</p><//>
      ${pairs.every(({ detail, calibration }) => calibration && detail.input.kind === "tabular") && html`<${OneFile} pairs=${pairs} />`}
      <${Losses} pairs=${pairs} />
      <div class="two">${pairs.map(({ detail, calibration }) => html`<${Card} title=${`Scores of ordinary rows, version ${detail.version}`}>
        ${calibration ? html`<${ScoreHistogram} histogram=${calibration.histogram} threshold=${calibration.threshold} />` : html`<${Uncalibrated} model=${model} version=${detail.version} />`}<//>`)}</div>
      ${concerns(shown.shadow, versions) ? html`<${Shadow} shadow=${shown.shadow} />` : html`<${OnLiveRows} shown=${shown} versions=${versions} onChange=${setChange} />`}
      ${change && html`<${AliasDialog} model=${model} change=${change} onClose=${() => setChange(null)} onDone=${() => { setChange(null); state.reload(); }} />`}
    </div>`}<//>`;
}

function concerns(shadow, versions) {
  return shadow && [shadow.version, shadow.against].every((version) => versions.includes(version));
}

function OnLiveRows({ shown, versions, onChange }) {
  const newer = Math.max(...versions.filter((version) => version !== shown.default_version));
  return html`<${Card} title="On live rows">${shown.aliases[CANDIDATE] === newer ? html`<p class="muted">Version ${newer} is the candidate: as soon as rows are scored, it is compared here with the version that answers.</p>`
    : html`<div class="stack"><p class="muted">On how many live rows do the two disagree? As <b>candidate</b> a version scores a share of the traffic beside the version that answers, and answers nobody.</p>
        <div><button type="button" class="button" onClick=${() => onChange({ alias: CANDIDATE, version: newer, from: shown.aliases[CANDIDATE] })}>Make version ${newer} the candidate</button></div></div>`}<//>`;
}

/** The column of a file that says which rows are anomalies: of two values, and none of the model's. */
function labelsOf(text, ignored) {
  const [head, ...body] = parseCsv(text.replace(/^\uFEFF/, ""));
  const truth = (cell) => ({ 1: true, true: true, 0: false, false: false })[(cell ?? "").trim().toLowerCase()];
  for (const name of ignored) {
    const labels = body.map(({ cells }) => truth(cells[head.cells.indexOf(name)]));
    if (!labels.includes(undefined) && new Set(labels).size === 2) return { name, labels };
  }
  return null;
}

async function scored({ base, detail }, text, signal, onRows) {
  const read = rowsOf(text, detail.input);
  const found = { ...read, scores: [], p_values: [], is_anomaly: [] };
  for (let first = 0; first < read.rows.length; first += ROWS_AT_ONCE) {
    const instances = read.rows.slice(first, first + ROWS_AT_ONCE);
    const answer = await call(`${base}/anomaly-score`, { method: "POST", body: { instances }, signal }).catch((problem) => {
      throw Object.assign(problem, { lineOf: (at) => read.lines[first + at] ?? "–" });
    });
    for (const name of ["scores", "p_values", "is_anomaly"]) found[name].push(...answer[name]);
    onRows(instances.length);
  }
  return found;
}

/** Both versions on the rows of one file. */
function OneFile({ pairs }) {
  const [state, setState] = useState({});
  const abort = useRef();
  useEffect(() => () => abort.current?.abort(), []);
  const take = async (file) => {
    abort.current?.abort();
    const { signal } = abort.current = new AbortController();
    let done = 0;
    const onRows = (rows) => { done += rows; if (!signal.aborted) setState({ busy: done }); };
    setState({ busy: done });
    try {
      const text = await textOfFile(file);
      const results = [];
      for (const pair of pairs) results.push(await scored(pair, text, signal, onRows));
      const known = labelsOf(text, results[0].ignored.filter((name) => results[1].ignored.includes(name)));
      setState({ name: file.name, results, known });
    } catch (problem) {
      setState(problem.name === "AbortError" ? {} : { problem });
    }
  };
  return html`<${Card} title="On the rows of one file"><div class="stack">
    <div class="drop"><label>A CSV file; a column of its own with 0 and 1, which says what is an anomaly, gives AUROC and AUPR: <input type="file" accept=".csv,.tsv,.txt,text/csv" aria-label="CSV file for both versions" onChange=${(event) => event.target.files[0] && take(event.target.files[0])} /></label></div>
    ${state.busy !== undefined && html`<div class="row"><span class="spin" role="status">${plural(state.busy, "score")}…</span><button type="button" class="button small" onClick=${() => { abort.current.abort(); setState({}); }}>Cancel</button></div>`}
    <${Failure} problem=${state.problem} lineOf=${state.problem?.lineOf} />
    ${state.results && html`<${FileFigures} versions=${pairs.map(({ detail }) => detail.version)} ...${state} />`}</div><//>`;
}

function FileFigures({ versions, name, results, known }) {
  const [one, other] = results;
  const rows = one.rows.length;
  const flagged = results.map(({ is_anomaly: flags }) => flags.filter(Boolean).length);
  const ranks = known ? results.map(({ scores }) => ranking(scores, known.labels)) : null;
  const apart = one.lines.map((_, at) => at).filter((at) => one.is_anomaly[at] !== other.is_anomaly[at]);
  const lines = [
    ["Rows flagged", flagged, count, 0], ["Share flagged", flagged.map((each) => each / rows), share, 0],
    ...(ranks ? [["AUROC", ranks.map(({ auroc }) => auroc), number, 1], ["AUPR", ranks.map(({ aupr }) => aupr), number, 1]] : []),
  ];
  return html`<div class="stack"><p>Of the ${plural(rows, "row")} of ${name} both flag <b>${count(one.is_anomaly.filter((flag, at) => flag && other.is_anomaly[at]).length)}</b>; on <b>${count(apart.length)}</b> they disagree.${known && ` Labels: the column ${known.name}, ${count(known.labels.filter(Boolean).length)} anomalies.`}</p>
    <${Changes} names=${versions.map((version) => `Version ${version}`)} lines=${lines} />
    ${apart.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Rows on which they disagree"><table><thead><tr><th scope="col">Line</th>${versions.map((version) => html`<th scope="col" class="right">p-value, version ${version}</th>`)}<th scope="col">Flagged by</th></tr></thead>
      <tbody>${apart.slice(0, MAX_LISTED).map((at) => html`<tr><th scope="row">${one.lines[at]}</th>${results.map((each) => html`<td class="right number">${number(each.p_values[at], 2)}</td>`)}<td>version ${versions[one.is_anomaly[at] ? 0 : 1]}</td></tr>`)}</tbody></table>
      ${apart.length > MAX_LISTED && html`<p class="small muted">The first ${MAX_LISTED} of ${count(apart.length)}.</p>`}</div>`}</div>`;
}

function Losses({ pairs }) {
  const known = pairs.filter(({ history }) => history);
  if (!known.length) return null;
  const length = Math.max(...known.map(({ history }) => history.train_loss.length));
  const padded = (values) => Array.from({ length }, (_, at) => values[at] ?? null);
  const tones = [["--chart-1", "--chart-1"], ["--chart-2", "--chart-2"]];
  const series = known.flatMap(({ history, detail }, at) => lossSeries(history, `, version ${detail.version}`, tones[at]).map((each) => ({ ...each, values: padded(each.values) })));
  const positive = series.every(({ values }) => values.every((loss) => loss === null || loss > 0));
  return html`<${Card} title="Loss by epoch"><${LineChart} label="Loss by epoch of both versions" x=${padded([]).map((_, at) => at + 1)} series=${series} logarithmic=${positive} height=${260} xLabel="epoch" /><//>`;
}
