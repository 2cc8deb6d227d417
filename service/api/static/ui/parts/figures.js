// What differs between two versions, figure by figure, with the change.
import { html } from "./base.js";
import { count, date, number, percent } from "./words.js";

const error = (value) => number(value, 3);
export const share = (value) => percent(value, 3);
const written = (value, write) => (write === share ? `${number(100 * value, 3)} points` : write(value));

/** [name, value of a version's detail, how it is written, which is better: -1 the lower, 1 the higher, 0 neither] */
const FIGURES = [
  ["Made", (each) => each.created, date, 0],
  ["Test error", (each) => each.metrics.reconstruction_error?.autoencoder?.test, error, -1],
  ["Validation error", (each) => each.metrics.reconstruction_error?.autoencoder?.validation, error, -1],
  ["Train error", (each) => each.metrics.reconstruction_error?.autoencoder?.train, error, -1],
  ["PCA on test rows", (each) => each.metrics.reconstruction_error?.pca?.test, error, 0],
  ["Denoised error", (each) => each.metrics.denoising?.denoised, error, -1],
  ["Threshold", (each) => each.calibration?.threshold, number, 0],
  ["False-alarm rate", (each) => each.calibration?.false_alarm_rate, share, 0],
  ["Test rows flagged", (each) => each.metrics.test_alarm_rate, share, 0],
  ["Calibration rows", (each) => each.calibration?.rows, count, 0],
  ["Fitted rows", (each) => each.row_counts.train, count, 0],
  ["Latent", (each) => each.latent_dim, number, 0],
  ["Epochs run", (each) => each.metrics.epochs, number, 0],
  ["Score", (each) => each.training.score, String, 0],
  ["Source", (each) => each.source, String, 0],
  ["Seed", (each) => each.seed, number, 0],
];
/** The same of both versions on the same rows, measured when the newer one was trained. */
const MEASURED = [
  ["Error on the same held-back rows", "error", error, -1], ["Flagged of the same held-back rows", "alarm_rate", share, 0],
  ["AUROC on labelled rows", "auroc", number, 1], ["AUPR on labelled rows", "aupr", number, 1],
];
const SHOWN_ABOVE = new Set(["score", "seed", "false_alarm_rate", "latent_dim"]);

/** [name, both values, how they are written, which is better] of each figure that both versions could have. */
function figuresOf(details) {
  const newer = details.find(({ metrics }, at) => metrics.comparison?.production === details[1 - at].version);
  const pairOf = (name) => { const pair = newer?.metrics.comparison[name]; return details.map((each) => pair?.[each === newer ? "candidate" : "production"]); };
  const settings = Object.keys({ ...details[0].training, ...details[1].training }).filter((name) => !SHOWN_ABOVE.has(name));
  return [
    ...MEASURED.map(([name, key, write, better]) => [name, pairOf(key), write, better]),
    ...FIGURES.map(([name, valueOf, write, better]) => [name, details.map(valueOf), write, better]),
    ...settings.map((name) => [name.replaceAll("_", " "), details.map(({ training }) => training[name] ?? null), (value) => (typeof value === "string" ? value : JSON.stringify(value)), 0]),
  ];
}

/** The figures that differ. details: of two versions, as the service gives them. */
export function Differences({ details }) {
  const lines = figuresOf(details).filter(([, values]) => JSON.stringify(values[0] ?? null) !== JSON.stringify(values[1] ?? null));
  return html`<${Changes} names=${details.map(({ version }) => `Version ${version}`)} lines=${lines} />`;
}

/** lines: [name, [one, other], write, better] */
export function Changes({ names, lines }) {
  if (!lines.length) return html`<p class="muted">The two do not differ in anything that is measured.</p>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Figures"><table class="figures">
    <thead><tr><th scope="col"><span class="sr">Figure</span></th>${names.map((name) => html`<th scope="col" class="right">${name}</th>`)}<th scope="col" class="right">Change</th></tr></thead>
    <tbody>${lines.map(([name, values, write, better]) => html`<tr><th scope="row">${name}</th>${values.map((value) => html`<td class="right number">${value === undefined || value === null ? "–" : write(value)}</td>`)}<${Change} values=${values} write=${write} better=${better} /></tr>`)}</tbody></table></div>`;
}

function Change({ values: [one, other], write, better }) {
  if (typeof one !== "number" || typeof other !== "number") return html`<td></td>`;
  const change = other - one;
  const improves = better * change > 0;
  return html`<td class=${`right number ${improves ? "best" : ""}`}>${change > 0 ? "+" : "−"}${written(Math.abs(change), write)}${better && change ? html` <span class="small">${improves ? "better" : "worse"}</span>` : ""}</td>`;
}
