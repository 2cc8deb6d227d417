// Preact with htm, and the small pieces that all views are made of.
import { h, render } from "../vendor/preact.js";
import { useCallback, useEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import htm from "../vendor/htm.js";
import { Problem } from "./api.js";

export const html = htm.bind(h);
export { render, useCallback, useEffect, useMemo, useRef, useState };

/** What a promise came to: {value, problem, loading, reload}. A result that is no longer wanted is dropped. */
export function useLoad(load, wants) {
  const [state, setState] = useState({ loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let wanted = true;
    const abort = new AbortController();
    setState((before) => ({ value: before.value, loading: true }));
    load(abort.signal).then(
      (value) => wanted && setState({ value, loading: false }),
      (problem) => wanted && setState({ problem, loading: false }),
    );
    return () => { wanted = false; abort.abort(); };
  }, [...wants, turn]);
  return { ...state, reload: useCallback(() => setTurn((before) => before + 1), []) };
}

export function Loading({ what = "Loading" }) {
  return html`<p class="spin" role="status">${what}…</p>`;
}

/** A refusal as the service gave it: its sentence, and what is wrong by row and column. */
export function Failure({ problem, lineOf }) {
  if (!problem) return null;
  const errors = problem instanceof Problem ? problem.errors : [];
  const placed = errors.filter((error) => error.row !== null || error.column !== null);
  return html`<div class="message bad" role="alert">
    <h3>${problem.title ?? "That did not work"}</h3>
    <p>${problem.message}</p>
    ${placed.length > 0 && html`<table><caption class="sr">What is wrong</caption>
      <thead><tr><th scope="col">Row</th>${lineOf && html`<th scope="col">Line of the file</th>`}<th scope="col">Column</th><th scope="col">Problem</th></tr></thead>
      <tbody>${placed.map((error) => html`<tr><td>${error.row ?? "–"}</td>${lineOf && html`<td>${error.row === null ? "–" : lineOf(error.row)}</td>`}<td>${error.column ?? "–"}</td><td>${error.problem}</td></tr>`)}</tbody>
    </table>`}
  </div>`;
}

/** What a load gives, or why there is nothing yet. */
export function Loaded({ state, what, children }) {
  if (state.problem) return html`<${Failure} problem=${state.problem} />`;
  if (state.value === undefined) return html`<${Loading} what=${what} />`;
  return children(state.value);
}

export function Card({ title, aside, children, level = 2, ...rest }) {
  const Heading = `h${level}`;
  return html`<section class="card" ...${rest}>${title && html`<header><${Heading}>${title}<//>${aside && html`<span class="push">${aside}</span>`}</header>`}${children}</section>`;
}

export function Tile({ name, note, children }) {
  return html`<div class="tile"><dt>${name}</dt><dd>${children}${note && html`<span class="small">${note}</span>`}</dd></div>`;
}

const STATES = { available: "good", loading: "warn", failed: "bad", retired: "" };

export function StateBadge({ state, reason }) {
  return html`<span class=${`badge ${STATES[state] ?? ""}`} title=${reason ?? ""}>${state === "available" ? "✓ " : state === "failed" ? "✕ " : ""}${state}</span>`;
}

/** In place of scores, where a version was made without rows. */
export function Uncalibrated({ model, version }) {
  return html`<p class="message warn">This version is not calibrated: it encodes and reconstructs, and scores nothing. <code>autoencoder recalibrate ${model} ${version} --rows ROWS</code> makes one that scores.</p>`;
}

export function Tabs({ label, tabs, chosen, onChoose }) {
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.findIndex(([name]) => name === chosen) + step + tabs.length) % tabs.length][0];
    onChoose(next);
    event.currentTarget.querySelector(`[data-tab="${next}"]`).focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${move}>${tabs.map(([name, text]) => html`
    <button type="button" role="tab" data-tab=${name} aria-selected=${name === chosen ? "true" : "false"} tabindex=${name === chosen ? 0 : -1} onClick=${() => onChoose(name)}>${text}</button>`)}
  </div>`;
}

/** A modal dialog of the browser: it holds the focus, and Escape closes it. */
export function Dialog({ title, wide = false, onClose, children }) {
  const element = useRef();
  useEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  return html`<dialog ref=${element} class=${wide ? "wide" : ""} aria-label=${title} onCancel=${(event) => { event.preventDefault(); onClose(); }}>
    <h2>${title}</h2>${children}
  </dialog>`;
}

/** Which theme is shown, so that what is drawn on a canvas is drawn again when it changes. */
export function useTheme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme);
  useEffect(() => {
    const change = () => setTheme(document.documentElement.dataset.theme);
    addEventListener("theme", change);
    return () => removeEventListener("theme", change);
  }, []);
  return theme;
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
