// One version: what it is, how good it is, what its threshold costs, and its model card.
import { Card, Failure, Loaded, StateBadge, Tile, Uncalibrated, html, useEffect, useLoad, useState } from "../parts/base.js";
import { addressOf, call, keys, objectUrl, textOf, versionPath } from "../parts/api.js";
import { AlarmCurve } from "../parts/alarms.js";
import { LineChart } from "../parts/charts.js";
import { ThresholdStudy } from "../parts/threshold.js";
import { KINDS, date, number, percent, plural, shapeOf } from "../parts/words.js";
import { quality } from "./models.js";
import { Reconstructions } from "./reconstructions.js";

export default function Version({ model, version }) {
  const base = versionPath(model, version);
  const state = useLoad((signal) => call(base, { signal }), [base]);
  const link = `${encodeURIComponent(model)}/${version}`;
  return html`<div class="head"><nav class="crumbs" aria-label="Where this is"><a href="#/models">Models</a><span aria-hidden="true">/</span><a href=${`#/models/${encodeURIComponent(model)}`}>${model}</a><span aria-hidden="true">/</span><span>version ${version}</span></nav>
      <h1>${model}, version ${version}</h1>${state.value && html`<${StateBadge} state=${state.value.state} reason=${state.value.reason} />`}${state.value?.aliases.map((alias) => html`<span class="badge alias">${alias}</span>`)}
      <div class="row push"><a class="button primary" href=${`#/try/${link}`}>Try it</a><a class="button" href=${`#/latent/${link}`}>Latent space</a></div></div>
    <${Loaded} state=${state} what="Loading the version">${(detail) => html`<div class="stack">
      ${detail.reason && html`<p class="message bad">${detail.reason}</p>`}
      ${detail.warnings.map((warning) => html`<p class="message warn">${warning}</p>`)}
      <dl class="tiles">
        <${Tile} name="Takes" note=${KINDS[detail.input.kind]}>${shapeOf(detail.input)}<//>
        <${Tile} name="Latent" note="what a row becomes">${plural(detail.latent_dim, "number")}<//>
        ${isTrainedHere(detail) && html`<${Tile} name="Trained on" note=${`${detail.source}, ${date(detail.created)}`}>${plural(detail.row_counts.train, "row")}<//>`}
        ${detail.calibration && html`<${Tile} name="False-alarm rate" note=${`test rows flagged: ${percent(detail.metrics.test_alarm_rate ?? 0)}`}>${percent(detail.calibration.false_alarm_rate)}<//>`}
        ${detail.metrics.denoising && html`<${Tile} name="Denoising" note=${detail.corruption ? `${detail.corruption.kind.replaceAll("_", " ")} noise of ${number(detail.corruption.level)}` : "by the network of the score"}>${denoising(detail.metrics.denoising)}<//>`}
      </dl>
      <${Card} title="Where it comes from"><${Origin} model=${model} detail=${detail} /><//>
      ${detail.calibration ? html`<div class="two">
        <${Card} title="How well it reconstructs"><${Errors} detail=${detail} /><//>
        ${isTrainedHere(detail) && html`<${History} base=${base} exhibits=${detail.exhibits} />`}
      </div>
      <${Calibration} base=${base} detail=${detail} />` : html`<${Uncalibrated} model=${model} version=${version} />`}
      <${Columns} columns=${detail.input.columns} />
      ${detail.state === "available" && detail.exhibits.includes("sample-request") ? html`<${Reconstructions} base=${base} schema=${detail.input} />`
        : detail.exhibits.includes("plots/reconstructions") && html`<${Pictures} base=${base} />`}
      <${Card} title="Model card" aside=${detail.exhibits.includes("report") && html`<${Report} base=${base} />`}><${ModelCard} base=${base} /><//>
    </div>`}<//>`;
}

/** Whether the network was fitted on the rows that the version names as its source. */
function isTrainedHere({ training }) {
  return training.imported === undefined && training.recalibrated === undefined;
}

/** Who trained the network, on what, and which rows calibrated the version. */
function Origin({ model, detail }) {
  const { imported, format, latent, scale, recalibrated, fitted } = detail.training;
  const earlier = recalibrated?.replace("version ", "");
  const rows = Object.values(detail.row_counts).reduce((sum, count) => sum + count, 0);
  const lines = [
    ["Trained", imported ? `elsewhere: ${imported}, a ${format}` : `here, on ${fitted?.source ?? detail.source}`],
    imported && ["Latent", latent],
    imported && ["Scale", scale === "none" ? "rows are taken as they are" : scale],
    earlier && ["Recalibrated", html`the networks of <a href=${`#/models/${encodeURIComponent(model)}/${earlier}`}>version ${earlier}</a>`],
    ["Calibrated", detail.calibration ? `with ${plural(rows, "row")} of ${detail.source}` : "not yet"],
    ["Published", date(detail.created)],
  ].filter(Boolean);
  return html`<table><tbody>${lines.map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${value}</td></tr>`)}</tbody></table>`;
}

/** The service makes it of Markdown, in which no name can become markup; the page's policy runs no script of it either. */
function ModelCard({ base }) {
  const state = useLoad((signal) => textOf(`${base}/model-card`, { signal }), [base]);
  return html`<${Loaded} state=${state}>${(card) => html`<div class="prose" dangerouslySetInnerHTML=${{ __html: card }}></div>`}<//>`;
}

function denoising({ noisy, denoised, noisy_psnr_db: before, denoised_psnr_db: after }) {
  return after === null || before === null ? `${percent(1 - denoised / noisy)} less noise` : `${number(before, 3)} → ${number(after, 3)} dB`;
}

/** Errors by split as bars, the autoencoder's beside PCA's. */
function Errors({ detail }) {
  const errors = detail.metrics.reconstruction_error;
  if (!errors?.autoencoder) return html`<p class="muted">Nothing was measured in training.</p>`;
  const methods = [["autoencoder", ""], ["pca", "cool"]].filter(([method]) => errors[method]);
  const largest = Math.max(...methods.flatMap(([method]) => Object.values(errors[method])));
  return html`<div class="stack"><p>${quality(detail)}</p>
    <div class="bars">${Object.keys(errors.autoencoder).map((split) => methods.map(([method, tone]) => html`
      <div class="line"><span class="small">${split}, ${method === "pca" ? "PCA" : method}</span><div class="track"><div class=${`fill ${tone}`} style=${{ width: `${(100 * errors[method][split]) / largest}%` }}></div></div><span class="number small">${number(errors[method][split], 3)}</span></div>`))}</div>
    <p class="small muted">Mean squared error in scaled units; lower is better.${errors.pca && " PCA has as many components as the latent has numbers."}${isTrainedHere(detail) && " Large error on test but not on train rows means that the model memorises."}</p></div>`;
}

export function lossSeries({ train_loss: train, validation_loss: validation }, name = "", tones = ["--chart-1", "--chart-2"]) {
  return [{ label: `train${name}`, values: train, tone: tones[0] }, { label: `validation${name}`, values: validation, tone: tones[1], dashed: Boolean(name) }];
}

function History({ base, exhibits }) {
  const state = useLoad((signal) => (exhibits.includes("history") ? call(`${base}/history`, { signal }) : Promise.resolve(null)), [base]);
  return html`<${Card} title="Loss by epoch"><${Loaded} state=${state}>${(history) => {
    if (!history && !exhibits.includes("plots/losses")) return html`<p class="muted">This version was trained before losses were kept.</p>`;
    if (!history) return html`<${Plot} base=${base} name="losses" words="Loss by epoch, as it was drawn at training" />`;
    const epochs = history.train_loss.map((_, at) => at + 1);
    const positive = [...history.train_loss, ...history.validation_loss].every((loss) => loss > 0);
    return html`<${LineChart} label=${`Loss by epoch: train rows end at ${number(history.train_loss.at(-1))}, validation rows at ${number(history.validation_loss.at(-1))}.`}
      x=${epochs} series=${lossSeries(history)} logarithmic=${positive} marks=${[history.best_epoch]} xLabel="epoch" />
      <p class="small muted">Kept: epoch ${history.best_epoch}, where rows that were not fitted had the least loss.</p>`;
  }}<//><//>`;
}

function Calibration({ base, detail }) {
  const state = useLoad((signal) => call(`${base}/calibration`, { signal }), [base]);
  const { false_alarms: alarms, point_false_alarms: ofPoints } = detail.metrics;
  const isFitted = detail.training.imported === undefined;
  return html`<${Card} title="What the threshold costs"><${Loaded} state=${state}>${(calibration) => html`
    <div class="stack"><p class="muted">The scores of ${plural(calibration.rows, "ordinary row")}${isFitted ? " that training never saw" : ""}. Whatever lies to the right of the threshold is flagged.</p>
    <${ThresholdStudy} calibration=${calibration} alarms=${alarms} /></div>`}<//><//>
    <div class=${ofPoints ? "two" : "stack"}><${Card} title="Does the false-alarm rate hold?"><${AlarmCurve} alarms=${alarms} /><//>
      ${ofPoints && html`<${Card} title="Does it hold for single readings?"><${AlarmCurve} alarms=${ofPoints} what="reading" isDependent=${true} /><//>`}</div>`;
}

function Columns({ columns }) {
  if (!columns.length) return null;
  return html`<${Card} title="Columns"><div class="scroll" tabindex="0" role="region" aria-label="Columns"><table><thead><tr><th scope="col">Column</th><th scope="col">Type</th><th scope="col">May be missing</th><th scope="col">In training</th></tr></thead>
    <tbody>${columns.map((column) => html`<tr><th scope="row">${column.name}</th><td>${column.type}</td><td>${column.may_be_missing ? "yes" : "no"}</td>
      <td>${column.categories.length ? `${plural(column.categories.length, "category", "categories")}: ${column.categories.slice(0, 8).join(", ")}${column.categories.length > 8 ? ", …" : ""}` : column.minimum === null ? "–" : `${number(column.minimum)} to ${number(column.maximum)}`}</td></tr>`)}</tbody></table></div><//>`;
}

function Pictures({ base }) {
  return html`<${Card} title="Reconstructions of test rows"><${Plot} base=${base} name="reconstructions" words="Test rows and their reconstructions, as they were drawn at training" /><//>`;
}

/** A picture that was drawn at training. Fetched with the key, as an image element cannot send one. */
export function Plot({ base, name, words }) {
  const [address, setAddress] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let made;
    const abort = new AbortController();
    objectUrl(`${base}/plots/${name}`, { signal: abort.signal }).then((url) => { made = url; setAddress(url); }, (refusal) => refusal.name !== "AbortError" && setProblem(refusal));
    return () => { abort.abort(); if (made) URL.revokeObjectURL(made); };
  }, [base, name]);
  if (problem?.status === 404) return html`<p class="muted">This version has no such picture.</p>`;
  if (problem) return html`<${Failure} problem=${problem} />`;
  return address && html`<img class="plot" src=${address} alt=${words} />`;
}

/** The report is a page of its own. With a key it cannot be opened by address, so it is saved instead. */
function Report({ base }) {
  const saveIt = async () => {
    const address = await objectUrl(`${base}/report`);
    Object.assign(document.createElement("a"), { href: address, download: "report.html" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  return keys.caller ? html`<button type="button" class="button small" onClick=${saveIt}>Save the training report</button>`
    : html`<a class="button small" href=${addressOf(`${base}/report`)} target="_blank" rel="noopener">Training report<span class="sr"> (opens a new tab)</span></a>`;
}
