// The shell: which view is shown, the theme, and the key.
import { Dialog, Failure, Loading, html, render, useEffect, useLoad, useRef, useState } from "./parts/base.js";
import { addressOf, call, keys } from "./parts/api.js";

const VIEWS = {
  models: { name: "Models", load: () => import("./views/models.js"), icon: "M4 6.5 12 3l8 3.5L12 10zM4 12l8 3.5 8-3.5M4 17l8 3.5 8-3.5" },
  try: { name: "Try it", load: () => import("./views/try.js"), icon: "M5 4h14v16H5zM8.5 9h7M8.5 13h7M8.5 17h3" },
  latent: { name: "Latent space", load: () => import("./views/latent.js"), icon: "M4 20V4M4 20h16M9 15h.01M12 9h.01M16 12h.01M17 6h.01M13 15h.01" },
  live: { name: "Live", load: () => import("./views/live.js"), icon: "M3 12h4l3-8 4 16 3-8h4" },
};
const OTHERS = { compare: { name: "Models", load: () => import("./views/compare.js"), under: "models" } };

/** "#/try/digits/2?x" as ["try", "digits", "2"]. */
function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map(decoded).filter(Boolean);
  return parts.length && (VIEWS[parts[0]] ?? OTHERS[parts[0]]) ? parts : ["models"];
}

function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function chosenTheme() {
  return localStorage.getItem("autoencoder.theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event("theme"));
}

function Shell() {
  const [path, setPath] = useState(route());
  const [view, setView] = useState();
  const [problem, setProblem] = useState();
  const [asks, setAsks] = useState();
  const [helps, setHelps] = useState(false);
  const [entered, setEntered] = useState(0);
  const main = useRef();
  useEffect(() => {
    const follow = () => {
      setPath(route());
      main.current.focus({ preventScroll: true });
      scrollTo(0, 0);
    };
    const ask = (event) => setAsks((before) => before ?? event.detail);
    addEventListener("hashchange", follow);
    addEventListener("key-needed", ask);
    return () => { removeEventListener("hashchange", follow); removeEventListener("key-needed", ask); };
  }, []);
  const name = path[0];
  useEffect(() => {
    const described = VIEWS[name] ?? OTHERS[name];
    document.title = `${described.name} · Autoencoder console`;
    let wanted = true;
    described.load().then((module) => wanted && setView({ name, View: module.default }), () => wanted && setProblem(new Error("A part of this page could not be loaded; load it again.")));
    return () => { wanted = false; };
  }, [name]);
  const shown = view?.name === name ? view.View : null;
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>To the content</a>
    <div class="shell">
      <header class="side">
        <a class="brand" href="#/models"><img src="ui/icon.svg" alt="" /><span>Autoencoder</span></a>
        <nav aria-label="Views">${Object.entries(VIEWS).map(([key, { name: text, icon }]) => html`
          <a class="item" href=${`#/${key}${path[1] && key !== "live" && key !== "models" ? `/${path[1]}${/^\d+$/.test(path[2] ?? "") ? `/${path[2]}` : ""}` : ""}`} aria-current=${(OTHERS[name]?.under ?? name) === key ? "page" : undefined}>
            <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.9" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d=${icon} /></svg>${text}</a>`)}
        </nav>
        <div class="foot">
          <${ThemeButton} />
          <button type="button" onClick=${() => setHelps(true)}>Help<span class="sr">, keys and version</span></button>
          <button type="button" class="wide" onClick=${() => setAsks({ wrong: false })}>${keys.caller ? "Change the key" : "Enter a key"}</button>
          <a class="wide" href=${addressOf("docs")}>Interface (OpenAPI)</a>
        </div>
      </header>
      <main id="main" tabindex="-1" ref=${main}>
        <${Failure} problem=${problem} />
        ${shown ? html`<${shown} key=${`${name}-${entered}`} path=${path.slice(1)} />` : html`<${Loading} />`}
      </main>
    </div>
    ${helps && html`<${HelpDialog} onClose=${() => setHelps(false)} onKey=${() => { setHelps(false); setAsks({ wrong: false }); }} />`}
    ${asks && html`<${KeyDialog} wrong=${asks.wrong} onClose=${() => setAsks(null)} onKey=${(key) => { keys.setCaller(key); setAsks(null); setEntered(entered + 1); }} />`}`;
}

function ThemeButton() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme);
  const other = theme === "dark" ? "light" : "dark";
  const change = () => {
    localStorage.setItem("autoencoder.theme", other);
    setTheme(other);
    showTheme(other);
  };
  return html`<button type="button" onClick=${change}>${other === "dark" ? "☾ Dark" : "☀ Light"}<span class="sr"> theme</span></button>`;
}

const SHORTCUTS = [
  ["Tab, Shift + Tab", "to the next and the previous control"],
  ["Left, right", "another tab; a step of a slider"],
  ["Arrow keys", "move the latent map, or the pen of the drawing area"],
  ["Space", "draws a dot in the drawing area"],
  ["+, −, 0", "zoom the latent map; 0 shows all"],
  ["Escape", "closes a dialog"],
];

/** All that the side bar has on a wide screen, the shortcuts, and which service this is. */
function HelpDialog({ onClose, onKey }) {
  const state = useLoad((signal) => call("openapi.json", { signal }), []);
  return html`<${Dialog} title="Help" onClose=${onClose}><div class="stack" style=${{ marginTop: "12px" }}>
    <p>Give a model rows in <b>Try it</b>, see where they lie in its <b>Latent space</b>, and watch what others send in <b>Live</b>. <b>Models</b> has all versions, how good they are, and what a threshold costs.</p>
    <h3>Keyboard</h3>
    <dl class="facts">${SHORTCUTS.map(([pressed, does]) => html`<dt>${pressed}</dt><dd>${does}</dd>`)}</dl>
    <h3>Service</h3>
    <dl class="facts"><dt>Version</dt><dd>${state.value?.info.version ?? "…"}</dd><dt>Address</dt><dd>${addressOf("")}</dd></dl>
    <div class="row"><a class="button" href=${addressOf("docs")}>Interface (OpenAPI)</a><button type="button" class="button" onClick=${onKey}>${keys.caller ? "Change the key" : "Enter a key"}</button>
      <button type="button" class="button primary" onClick=${onClose}>Close</button></div></div><//>`;
}

function KeyDialog({ wrong, onClose, onKey }) {
  const [key, setKey] = useState("");
  const submit = (event) => { event.preventDefault(); if (key.trim()) onKey(key.trim()); };
  return html`<${Dialog} title="API key" onClose=${onClose}><form onSubmit=${submit}>
    <p class="muted">${wrong ? "That key was not accepted. " : ""}The key is kept until this tab is closed, and sent to this service only.</p>
    <div class="field"><label for="key">Key</label><input id="key" type="password" autocomplete="off" value=${key} onInput=${(event) => setKey(event.target.value)} /></div>
    <div class="row">${keys.caller && html`<button type="button" class="button plain" onClick=${() => { keys.forget(); onClose(); location.reload(); }}>Forget the key</button>`}
      <button type="button" class="button" onClick=${onClose}>Cancel</button><button class="button primary">Use this key</button></div>
  </form><//>`;
}

showTheme(chosenTheme());
const root = document.getElementById("root");
root.textContent = "";
render(html`<${Shell} />`, root);
