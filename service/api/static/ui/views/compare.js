// Two versions of one model, side by side.
import { Card, Loaded, StateBadge, Uncalibrated, html, useLoad } from "../parts/base.js";
import { call, modelPath, versionPath } from "../parts/api.js";
import { LineChart, ScoreHistogram } from "../parts/charts.js";
import { count, date, number, percent } from "../parts/words.js";
import { Shadow } from "./models.js";
import { lossSeries } from "./version.js";

/** [name, value of a detail, how it is written, which is better: -1 the lower, 1 the higher, 0 neither] */
const LINES = [
  ["Made", (each) => each.created, date, 0],
  ["Test error", (each) => each.metrics.reconstruction_error?.autoencoder.test, number, -1],
  ["Validation error", (each) => each.metrics.reconstruction_error?.autoencoder.validation, number, -1],
  ["Train error", (each) => each.metrics.reconstruction_error?.autoencoder.train, number, -1],
  ["PCA on test rows", (each) => each.metrics.reconstruction_error?.pca?.test, number, 0],
  ["Denoised error", (each) => each.metrics.denoising?.denoised, number, -1],
  ["Threshold", (each) => each.calibration?.threshold, number, 0],
  ["False-alarm rate", (each) => each.calibration?.false_alarm_rate, percent, 0],
  ["Test rows flagged", (each) => each.metrics.test_alarm_rate, percent, 0],
  ["Calibration rows", (each) => each.calibration?.rows, count, 1],
  ["Fitted rows", (each) => each.row_counts.train, count, 0],
  ["Latent", (each) => each.latent_dim, number, 0],
  ["Epochs", (each) => each.metrics.epochs, number, 0],
  ["Score", (each) => each.training.score, String, 0],
  ["Source", (each) => each.source, String, 0],
  ["Seed", (each) => each.seed, number, 0],
];

export default function Compare({ path }) {
  const [model, ...versions] = path;
  const state = useLoad(async (signal) => {
    const [shown, ...pairs] = await Promise.all([call(modelPath(model), { signal }), ...versions.map(async (version) => {
      const base = versionPath(model, version);
      const detail = await call(base, { signal });
      const calibration = detail.calibration && await call(`${base}/calibration`, { signal });
      const history = detail.exhibits.includes("history") ? await call(`${base}/history`, { signal }) : null;
      return { detail, calibration, history };
    })]);
    return { shown, pairs };
  }, [path.join("/")]);
  return html`<div class="head"><nav class="crumbs" aria-label="Where this is"><a href="#/models">Models</a><span aria-hidden="true">/</span><a href=${`#/models/${encodeURIComponent(model)}`}>${model}</a><span aria-hidden="true">/</span><span>comparison</span></nav>
      <h1>${model}: version ${versions[0]} and version ${versions[1]}</h1></div>
    <${Loaded} state=${state} what="Loading both versions">${({ shown, pairs }) => html`<div class="stack">
      <${Card} title="Figures"><div class="scroll" tabindex="0" role="region" aria-label="Figures"><table>
        <thead><tr><th scope="col"><span class="sr">Figure</span></th>${pairs.map(({ detail }) => html`<th scope="col" class="right">Version ${detail.version} <${StateBadge} state=${detail.state} reason=${detail.reason} /></th>`)}</tr></thead>
        <tbody>${LINES.map((line) => html`<${Line} line=${line} details=${pairs.map(({ detail }) => detail)} />`)}${changed(pairs)}</tbody></table></div>
        <p class="small muted">Errors are comparable only when both versions scale the rows alike, and scores only by their p-values.</p><//>
      <${Losses} pairs=${pairs} />
      <div class="two">${pairs.map(({ detail, calibration }) => html`<${Card} title=${`Scores of ordinary rows, version ${detail.version}`}>
        ${calibration ? html`<${ScoreHistogram} histogram=${calibration.histogram} threshold=${calibration.threshold} />` : html`<${Uncalibrated} model=${model} version=${detail.version} />`}<//>`)}</div>
      ${concerns(shown.shadow, versions) ? html`<${Shadow} shadow=${shown.shadow} />`
        : html`<${Card} title="On live rows"><p class="muted">To see on how many live rows the two disagree, give the newer one the alias <b>candidate</b>: it then scores a share of the traffic in the shadow of the other.</p><//>`}
    </div>`}<//>`;
}

function concerns(shadow, versions) {
  return shadow && [shadow.version, shadow.against].every((version) => versions.includes(String(version)));
}

function Line({ line: [name, valueOf, write, better], details }) {
  const values = details.map(valueOf);
  if (values.every((value) => value === undefined || value === null)) return null;
  const best = better && values[0] !== values[1] && values.every((value) => typeof value === "number") ? (better > 0 ? Math.max(...values) : Math.min(...values)) : undefined;
  return html`<tr><th scope="row">${name}</th>${values.map((value) => html`<td class=${`right number ${value === best && best !== undefined ? "best" : ""}`}>${value === undefined || value === null ? "–" : write(value)}</td>`)}</tr>`;
}

/** Settings of the training that differ. */
function changed(pairs) {
  const [one, other] = pairs.map(({ detail }) => detail.training);
  const shown = new Set(["score", "seed", "false_alarm_rate"]);
  return Object.keys({ ...one, ...other }).filter((name) => !shown.has(name) && JSON.stringify(one[name]) !== JSON.stringify(other[name]))
    .map((name) => html`<tr><th scope="row">${name.replaceAll("_", " ")}</th>${[one, other].map((each) => html`<td class="right">${JSON.stringify(each[name] ?? null)}</td>`)}</tr>`);
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
