// What is in the store: all models, one model with its versions, and (in a module of its own) one version.
import { Card, Dialog, Failure, Loaded, Loading, StateBadge, Tile, html, useEffect, useLoad, useState } from "../parts/base.js";
import { Differences } from "../parts/figures.js";
import { Problem, call, keys, modelPath, versionPath } from "../parts/api.js";
import { KINDS, count, date, number, percent, plural, shapeOf } from "../parts/words.js";

const MAX_SHOWN = 60;
const PRODUCTION = "production";
export const CANDIDATE = "candidate";

export default function Models({ path }) {
  if (path[1]) return html`<${Lazily} load=${() => import("./version.js")} model=${path[0]} version=${path[1]} />`;
  if (path[0]) return html`<${Model} name=${path[0]} key=${path[0]} />`;
  return html`<${All} />`;
}

function Lazily({ load, ...rest }) {
  const [View, setView] = useState();
  useEffect(() => { load().then((module) => setView(() => module.default)); }, []);
  return View ? html`<${View} ...${rest} />` : html`<${Loading} />`;
}

function All() {
  const state = useLoad(async (signal) => {
    const listed = await call("models", { signal });
    const details = await Promise.all(listed.models.slice(0, MAX_SHOWN).map(({ name }) => call(modelPath(name), { signal })));
    return { ...listed, details };
  }, []);
  return html`<div class="head"><h1>Models</h1>
      <p class="lead">An autoencoder learns what ordinary rows look like, and says how far a new row is from that. Every training makes a version; the alias <b>production</b> decides which one answers.</p></div>
    <${Loaded} state=${state} what="Loading models">${({ details, default_model: first, store_problem: trouble }) => html`<div class="stack">
      ${trouble && html`<p class="message warn">${trouble}</p>`}
      ${details.length ? html`<div class="grid">${details.map((model) => html`<${ModelCard} model=${model} isDefault=${model.name === first} />`)}</div>`
        : html`<div class="card empty"><h3>No models yet</h3><p>Train one, for example <code>autoencoder train rows.csv</code> or, on bundled handwriting, <code>autoencoder train digits</code>. It appears here within seconds.</p></div>`}
    </div>`}<//>`;
}

function ModelCard({ model, isDefault }) {
  const { version } = model;
  const link = encodeURIComponent(model.name);
  const failed = model.versions.filter(({ state }) => state === "failed").length;
  return html`<${Card} title=${html`<a href=${`#/models/${link}`}>${model.name}</a>`}
      aside=${isDefault ? html`<span class="badge" title="Answers when a request names no model">default</span>` : null}>
    <div class="stack">
      <div class="row">
        ${model.default_version === null ? html`<span class="badge bad">not available</span>` : html`<span class="badge good">✓ version ${model.default_version} answers</span>`}
        ${version && html`<span class="badge">${KINDS[version.input.kind]} · ${shapeOf(version.input)}</span>`}
        ${Object.entries(model.aliases).map(([alias, number_]) => html`<span class="badge alias">${alias} → ${number_}</span>`)}
        ${failed > 0 && html`<span class="badge bad">✕ ${plural(failed, "version")} failed</span>`}
      </div>
      ${version && html`<p class="small">${quality(version)}</p>`}
      <p class="small muted">${plural(model.versions.length, "version")}${version ? ` · the shown one of ${date(version.created)}` : ""}</p>
      <div class="row"><a class="button primary" href=${`#/try/${link}`}>Try it</a><a class="button" href=${`#/models/${link}`}>Versions</a>
        <a class="button" href=${`#/latent/${link}`}>Latent space</a></div>
    </div><//>`;
}

/** How well a version reconstructs, beside what a linear method can do. */
export function quality(version) {
  const errors = version.metrics.reconstruction_error;
  if (!errors?.autoencoder) return "No errors were measured.";
  if (!errors.pca) return `Error on test rows ${number(errors.autoencoder.test)}.`;
  const [own, pca] = [errors.autoencoder.test, errors.pca.test];
  const change = (own - pca) / pca;
  const beside = Math.abs(change) < 0.005 ? "as good as" : `${percent(Math.abs(change))} ${change < 0 ? "lower" : "higher"} than`;
  return `Error on test rows ${number(own)}, ${beside} PCA's (${number(pca)}).`;
}

function Model({ name }) {
  const [picked, setPicked] = useState([]);
  const [change, setChange] = useState(null);
  const state = useLoad(async (signal) => {
    const model = await call(modelPath(name), { signal });
    const newest = model.versions.toReversed().slice(0, MAX_SHOWN);
    // A version that failed may have no readable manifest; its row says so.
    const details = await Promise.all(newest.map(({ version }) => call(versionPath(name, version), { signal }).catch((problem) => { if (problem.status === 401 || problem.name === "AbortError") throw problem; return null; })));
    return { model, rows: newest.map((status, at) => ({ ...status, detail: details[at] })) };
  }, [name]);
  const pick = (version) => setPicked((before) => (before.includes(version) ? before.filter((each) => each !== version) : [...before, version].slice(-2)));
  return html`<div class="head"><nav class="crumbs" aria-label="Where this is"><a href="#/models">Models</a><span aria-hidden="true">/</span><span>${name}</span></nav><h1>${name}</h1>
      <div class="row push"><a class="button primary" href=${`#/try/${encodeURIComponent(name)}`}>Try it</a><a class="button" href=${`#/latent/${encodeURIComponent(name)}`}>Latent space</a></div></div>
    <${Loaded} state=${state} what="Loading versions">${({ model, rows }) => html`<div class="stack">
      <${Aliases} model=${model} onChange=${setChange} />
      <${Card} title="Versions" aside=${html`<span class="row"><span class="small muted">${picked.length === 2 ? "" : "Mark two to compare them"}</span>
          <a class=${`button small ${picked.length === 2 ? "primary" : ""}`} aria-disabled=${picked.length !== 2} href=${picked.length === 2 ? `#/compare/${encodeURIComponent(name)}/${[...picked].sort((a, b) => a - b).join("/")}` : undefined}>Compare</a></span>`}>
        <div class="scroll" tabindex="0" role="region" aria-label="Versions"><table><thead><tr><th scope="col"><span class="sr">Compare</span></th><th scope="col">Version</th><th scope="col">State</th><th scope="col">Made</th>
            <th scope="col" class="right">Test error</th><th scope="col" class="right">PCA</th><th scope="col" class="right">Flagged of test rows</th><th scope="col"><span class="sr">Actions</span></th></tr></thead>
          <tbody>${rows.map((row) => html`<${VersionRow} model=${model} row=${row} picked=${picked.includes(row.version)} onPick=${() => pick(row.version)} onChange=${setChange} />`)}</tbody></table></div><//>
      <${Shadow} shadow=${model.shadow} candidate=${model.aliases.candidate} />
    </div>`}<//>
    ${change && html`<${AliasDialog} model=${name} change=${change} onClose=${() => setChange(null)} onDone=${() => { setChange(null); state.reload(); }} />`}`;
}

function VersionRow({ model, row, picked, onPick, onChange }) {
  const { version, state, reason, detail } = row;
  const errors = detail?.metrics.reconstruction_error;
  const aliases = Object.entries(model.aliases).filter(([, named]) => named === version).map(([alias]) => alias);
  const better = errors?.pca && errors.autoencoder.test <= errors.pca.test;
  return html`<tr>
    <td><input type="checkbox" checked=${picked} onChange=${onPick} aria-label=${`Compare version ${version}`} /></td>
    <th scope="row"><a href=${`#/models/${encodeURIComponent(model.name)}/${version}`}>${version}</a> ${aliases.map((alias) => html` <span class="badge alias">${alias}</span>`)}</th>
    <td><${StateBadge} state=${state} reason=${reason} />${version === model.default_version ? html` <span class="badge">answers</span>` : ""}${reason ? html`<div class="small muted">${reason}</div>` : ""}</td>
    <td class="nowrap">${detail ? date(detail.created) : "–"}</td>
    <td class=${`right number ${better ? "best" : ""}`}>${number(errors?.autoencoder.test)}</td><td class="right number">${number(errors?.pca?.test)}</td>
    <td class="right number">${detail?.metrics.test_alarm_rate === undefined ? "–" : percent(detail.metrics.test_alarm_rate)}</td>
    <td class="right nowrap">${model.aliases[PRODUCTION] !== version && html`<button type="button" class="button small" onClick=${() => onChange({ alias: PRODUCTION, version, from: model.aliases[PRODUCTION] ?? model.default_version })}>Promote<span class="sr"> version ${version}</span></button>`}
      ${version !== model.default_version && (model.aliases[CANDIDATE] === version
        ? html` <button type="button" class="button small" onClick=${() => onChange({ alias: CANDIDATE, version, withdraw: true })}>Withdraw<span class="sr"> candidate ${version}</span></button>`
        : html` <button type="button" class="button small" onClick=${() => onChange({ alias: CANDIDATE, version, from: model.aliases[CANDIDATE] })}>Make candidate<span class="sr"> version ${version}</span></button>`)}</td></tr>`;
}

function Aliases({ model, onChange }) {
  const entries = Object.entries(model.aliases).sort();
  const production = model.aliases[PRODUCTION];
  const elsewhere = entries.filter(([alias, version]) => model.serving[alias] !== version);
  const earlier = model.earlier[PRODUCTION];
  return html`<${Card} title="Who answers" aside=${earlier !== undefined && html`<button type="button" class="button small" onClick=${() => onChange({ alias: PRODUCTION, version: earlier, from: production, back: true })}>Roll back to version ${earlier}</button>`}>
    <div class="stack">
      <p>${model.default_version === null ? "No version of this model is available." : html`Version <b>${model.default_version}</b> answers requests that name no version${production === undefined ? ", as it is the newest: the alias production is not set" : ""}.`}</p>
      ${entries.length > 0 && html`<div class="row">${entries.map(([alias, version]) => html`<span class="badge alias">${alias} → ${version}</span>`)}</div>`}
      ${elsewhere.map(([alias, version]) => html`<p class="message warn">${alias} names version ${version}, which is not loaded; ${model.serving[alias] === undefined ? "nothing answers for it." : `version ${model.serving[alias]} goes on answering for it.`}</p>`)}
    </div><//>`;
}

export function Shadow({ shadow, candidate }) {
  if (!shadow) {
    return candidate === undefined ? null : html`<${Card} title="Shadow run"><p class="muted">Version ${candidate} is the candidate. As soon as rows are scored, it scores a share of them as well, and the comparison appears here.</p><//>`;
  }
  return html`<${Card} title=${`Shadow run: version ${shadow.version} beside version ${shadow.against}`}>
    <dl class="tiles">
      <${Tile} name="They disagree on" note=${`of ${plural(shadow.rows, "live row")}`}>${percent(shadow.disagreement)}<//>
      <${Tile} name="Only the candidate flags">${count(shadow.only_candidate)}<//>
      <${Tile} name="Only the present one flags">${count(shadow.only_current)}<//>
      <${Tile} name="Both flag">${count(shadow.both)}<//>
      <${Tile} name="p-values differ by" note="on average">${number(shadow.p_value_distance, 2)}<//>
    </dl>
    ${shadow.failures > 0 && html`<p class="message bad">The candidate failed on ${plural(shadow.failures, "batch", "batches")}.</p>`}<//>`;
}

/** Says what will happen, asks for an admin key where one is needed, and does it. */
export function AliasDialog({ model, change, onClose, onDone }) {
  const [key, setKey] = useState("");
  const [needsKey, setNeedsKey] = useState(false);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    if (key.trim()) keys.setAdmin(key.trim());
    setBusy(true);
    try {
      const alias = `${modelPath(model)}/aliases/${change.alias}`;
      await (change.withdraw ? call(alias, { method: "DELETE", admin: true }) : change.back ? call(`${alias}/rollback`, { method: "POST", admin: true }) : call(alias, { method: "PUT", body: { version: change.version }, admin: true }));
      onDone();
    } catch (refusal) {
      setBusy(false);
      const needs = refusal instanceof Problem && (refusal.status === 401 || refusal.status === 403);
      setNeedsKey(needs || needsKey);
      setProblem(needs && !key ? null : refusal);
    }
  };
  const isCandidate = change.alias === CANDIDATE;
  const verb = change.withdraw ? "Withdraw" : isCandidate ? "Make candidate" : change.back ? "Roll back" : "Promote";
  const title = change.withdraw ? `Withdraw candidate ${change.version}?` : isCandidate ? `Make version ${change.version} the candidate?` : `${verb}${change.back ? " to" : ""} version ${change.version}?`;
  return html`<${Dialog} title=${title} wide=${!isCandidate} onClose=${onClose}><form onSubmit=${submit}>
    ${change.withdraw ? html`<p>Version <b>${change.version}</b> scores live rows no more. What answers stays as it is.</p>`
      : isCandidate ? html`<p>Version <b>${change.version}</b>${change.from === undefined ? "" : html`, in place of version ${change.from},`} scores a share of the live rows beside the version that answers. Its scores answer nobody; the comparison appears here.</p>`
        : html`<p>From the next request on, version <b>${change.version}</b> answers for <b>${change.alias}</b>${change.from === undefined || change.from === null ? "" : html`, in place of version ${change.from}`}. No request is lost, and you can roll back here.</p>
          ${change.from > 0 && change.from !== change.version && html`<${Evidence} model=${model} versions=${[change.from, change.version]} />`}`}
    ${needsKey && html`<div class="field"><label for="admin-key">Admin key</label><input id="admin-key" type="password" autocomplete="off" value=${key} onInput=${(event) => setKey(event.target.value)} />
      <span class="hint">Needed for this. Kept until this tab is closed.</span></div>`}
    <${Failure} problem=${problem} />
    <div class="row"><button type="button" class="button" onClick=${onClose}>Cancel</button><button class="button primary" disabled=${busy}>${verb}</button></div>
  </form><//>`;
}

/** The figures on which a promotion is decided. One that cannot be read is no reason against it. */
function Evidence({ model, versions }) {
  const state = useLoad((signal) => Promise.all([call(modelPath(model), { signal }), ...versions.map((version) => call(versionPath(model, version), { signal }))]), [model, ...versions]);
  return html`<${Loaded} state=${state} what="Loading the figures">${([{ shadow }, ...details]) => html`<div>
    <${Differences} details=${details} />
    ${shadow && versions.every((version) => [shadow.version, shadow.against].includes(version)) && html`<p class="small">On ${plural(shadow.rows, "live row")} they disagreed on ${percent(shadow.disagreement)}: ${count(shadow.only_candidate)} flagged by the candidate alone, ${count(shadow.only_current)} by the present version alone.</p>`}</div>`}<//>`;
}
