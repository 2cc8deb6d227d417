// Which model and version a view is about. It stands in the address, so that it can be sent to somebody.
import { call, versionPath } from "./api.js";
import { Loaded, StateBadge, html, useLoad } from "./base.js";

/** Calls children({model, version, detail}) for the version that the path names, or else for the default one. */
export function WithVersion({ view, title, lead, path, children }) {
  const models = useLoad((signal) => call("models", { signal }), []);
  return html`<${Loaded} state=${models} what="Loading models">${(listed) => {
    if (!listed.models.length) return html`<div class="card empty"><h3>No models yet</h3><p>Train one: <code>autoencoder train rows.csv</code>. It appears here within seconds.</p></div>`;
    const named = listed.models.find(({ name }) => name === path[0]);
    const model = named ?? listed.models.find(({ name }) => name === listed.default_model) ?? listed.models[0];
    const asked = named && path[1] !== undefined ? named.versions.find((each) => String(each.version) === path[1]) : undefined;
    const version = asked?.version ?? model.default_version ?? model.versions.at(-1)?.version;
    const wrong = path[0] !== undefined && !named ? `There is no model “${path[0]}”. Choose another above.`
      : path[1] !== undefined && !asked ? `Model “${model.name}” has no version ${path[1]}. Choose another above.` : null;
    const go = (name, number) => { location.hash = `#/${view}/${encodeURIComponent(name)}${number ? `/${number}` : ""}`; };
    return html`<div class="head"><h1>${title}</h1>
        <div class="row push"><label class="sr" for="model">Model</label>
          <select id="model" value=${wrong && !named ? "" : model.name} onChange=${(event) => go(event.target.value)}>${wrong && html`<option value="">choose a model</option>`}${listed.models.map(({ name }) => html`<option value=${name}>${name}</option>`)}</select>
          <label class="sr" for="version">Version</label>
          <select id="version" value=${wrong ? "" : version} onChange=${(event) => go(model.name, event.target.value)}>${wrong && html`<option value="">choose a version</option>`}${model.versions.toReversed().map((each) => html`<option value=${each.version}>version ${each.version}${aliasesOf(model, each.version)}</option>`)}</select></div>
        <p class="lead">${lead}</p></div>
      ${wrong ? html`<p class="message bad" role="alert">${wrong}</p>` : version === undefined ? html`<p class="message warn">This model has no version.</p>` : html`<${OneVersion} key=${`${model.name}/${version}`} model=${model.name} version=${version}>${children}<//>`}`;
  }}<//>`;
}

function aliasesOf(model, version) {
  const names = Object.entries(model.aliases).filter(([, number]) => number === version).map(([name]) => name);
  return names.length ? ` (${names.join(", ")})` : "";
}

function OneVersion({ model, version, children }) {
  const detail = useLoad((signal) => call(versionPath(model, version), { signal }), [model, version]);
  return html`<${Loaded} state=${detail} what="Loading the version">${(value) => html`
    ${value.state !== "available" && html`<p class="message warn">This version is <${StateBadge} state=${value.state} reason=${value.reason} />: it answers nothing now. ${value.reason ?? "Give it an alias to have it loaded."}</p>`}
    ${children({ model, version, detail: value })}`}<//>`;
}

