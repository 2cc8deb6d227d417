// A row of a table: a form made of the schema, or a CSV file.
import { Card, Failure, Tabs, html, useEffect, useState } from "../parts/base.js";
import { call } from "../parts/api.js";
import { csvText, rowsOf, save, textOfFile } from "../parts/csv.js";
import { chief, count, number, percent, plural } from "../parts/words.js";

const MAX_FIELDS = 120;
const MANY_CATEGORIES = 40;
const MAX_LISTED = 200;
const FALSE_DISCOVERY_RATE = 0.1;

export default function TableInput({ schema, samples, start, base, onRow, study, problem }) {
  const [tab, setTab] = useState("form");
  const width = schema.columns.length || schema.row_shape[0];
  const tabs = [...(width <= MAX_FIELDS ? [["form", "Form"]] : []), ["csv", "CSV"]];
  const chosen = tabs.some(([name]) => name === tab) ? tab : "csv";
  return html`<${Card} title="The row">
    <${Tabs} label="How to give the row" tabs=${tabs} chosen=${chosen} onChoose=${setTab} />
    <div hidden=${chosen !== "form"}>${width <= MAX_FIELDS && html`<${Form} schema=${schema} samples=${samples} start=${start} onRow=${onRow} study=${study} problem=${problem} />`}</div>
    <div hidden=${chosen !== "csv"}><${CsvRows} schema=${schema} samples=${samples} base=${base} onRow=${onRow} /></div><//>`;
}

/** What a form starts with: the middle of each range. */
function middling(schema) {
  if (!schema.columns.length) return Array(schema.row_shape[0]).fill(0);
  return Object.fromEntries(schema.columns.map((column) => [column.name, {
    numeric: () => (column.minimum === null ? 0 : Number(((column.minimum + column.maximum) / 2).toPrecision(3))),
    boolean: () => false,
    categorical: () => column.categories[0] ?? "",
    timestamp: () => new Date().toISOString().slice(0, 19) + "Z",
  }[column.type]()]));
}

function fieldsOf(schema) {
  if (schema.columns.length) return schema.columns.map((column) => ({ ...column, key: column.name, label: column.name }));
  return Array.from({ length: schema.row_shape[0] }, (_, at) => ({ key: at, label: `value ${at + 1}`, type: "numeric", minimum: null, maximum: null, categories: [], may_be_missing: schema.may_be_missing }));
}

/** One number far out of its range: what an anomaly may look like. */
function spoiled(row, schema) {
  const numeric = fieldsOf(schema).filter(({ type, key }) => type === "numeric" && typeof row[key] === "number");
  if (!numeric.length) return row;
  const { key, minimum, maximum } = numeric[Math.floor(Math.random() * numeric.length)];
  const span = minimum === null ? Math.max(1, Math.abs(row[key])) : maximum - minimum || 1;
  const copy = Array.isArray(row) ? [...row] : { ...row };
  copy[key] = Number(((maximum ?? row[key]) + span).toPrecision(4));
  return copy;
}

function Form({ schema, samples, start, onRow, study, problem }) {
  const [row, setRow] = useState(start ?? samples[0] ?? middling(schema));
  const [sample, setSample] = useState(0);
  useEffect(() => { onRow(row); }, [row]);
  const change = (key, value) => setRow((before) => { const copy = Array.isArray(before) ? [...before] : { ...before }; copy[key] = value; return copy; });
  const takeSample = () => { const next = (sample + 1) % samples.length; setSample(next); setRow(samples[next]); };
  const faulty = new Set(study?.flagged ? chief(study.contributions ?? []).map(({ feature }) => feature) : []);
  const wrong = new Set((problem?.errors ?? []).map(({ column }) => column));
  return html`<div class="stack"><div class="row">
      ${samples.length > 0 && html`<button type="button" class="button small" onClick=${takeSample}>Another sample</button>`}
      <button type="button" class="button small" onClick=${() => setRow(spoiled(row, schema))}>Spoil one value</button></div>
    <div class="fields">${fieldsOf(schema).map((field) => html`<${Field} key=${field.key} field=${field} value=${row[field.key]} atFault=${faulty.has(field.key)} wrong=${wrong.has(field.key)} onChange=${(value) => change(field.key, value)} />`)}</div>
  </div>`;
}

function Field({ field, value, atFault, wrong, onChange }) {
  const id = `field-${field.key}`;
  const Control = { numeric: NumberField, boolean: BooleanField, categorical: CategoryField, timestamp: TimestampField }[field.type];
  const hint = field.type === "numeric" && field.minimum !== null ? `in training ${number(field.minimum, 3)} to ${number(field.maximum, 3)}` : field.type === "timestamp" ? "UTC" : null;
  return html`<div class=${`field ${atFault ? "at-fault" : ""}`}><label for=${id}>${field.label}</label>
    <${Control} id=${id} field=${field} value=${value} wrong=${wrong} onChange=${onChange} />
    ${(hint || field.may_be_missing) && html`<span class="hint">${[hint, field.may_be_missing && "may be empty"].filter(Boolean).join("; ")}</span>`}</div>`;
}

function NumberField({ id, field, value, wrong, onChange }) {
  const hasRange = field.minimum !== null && field.maximum > field.minimum;
  const span = hasRange ? field.maximum - field.minimum : 1;
  const step = hasRange ? 10 ** Math.floor(Math.log10(span / 100)) : "any";
  const read = (text) => onChange(text === "" ? null : Number(text));
  return html`<input id=${id} type="number" step="any" value=${typeof value === "number" ? Number(value.toPrecision(6)) : ""} aria-invalid=${wrong ? "true" : undefined} onInput=${(event) => read(event.target.value)} />
    ${hasRange && html`<input type="range" aria-label=${`${field.label}, from its range in training and some way beyond`} min=${field.minimum - span / 2} max=${field.maximum + span / 2} step=${step} value=${value ?? field.minimum} onInput=${(event) => read(event.target.value)} />`}`;
}

function BooleanField({ id, field, value, onChange }) {
  return html`<select id=${id} value=${value === null || value === undefined ? "" : String(Boolean(value))} onChange=${(event) => onChange(event.target.value === "" ? null : event.target.value === "true")}>
    ${field.may_be_missing && html`<option value="">(missing)</option>`}<option value="true">true</option><option value="false">false</option></select>`;
}

function CategoryField({ id, field, value, onChange }) {
  if (field.categories.length > MANY_CATEGORIES) {
    return html`<input id=${id} list=${`${id}-known`} value=${value ?? ""} onInput=${(event) => onChange(event.target.value || null)} />
      <datalist id=${`${id}-known`}>${field.categories.map((category) => html`<option value=${category}></option>`)}</datalist>`;
  }
  const isNew = value !== null && value !== undefined && !field.categories.includes(value);
  return html`<select id=${id} value=${value ?? ""} onChange=${(event) => onChange(event.target.value || null)}>
    ${field.may_be_missing && html`<option value="">(missing)</option>`}${field.categories.map((category) => html`<option value=${category}>${category}</option>`)}
    <option value=${isNew ? value : "never seen before"}>${isNew ? value : "(one never seen)"}</option></select>`;
}

function TimestampField({ id, value, onChange }) {
  const shown = typeof value === "number" ? new Date(value).toISOString() : value ?? "";
  return html`<input id=${id} type="datetime-local" step="1" value=${shown.slice(0, 19)} onChange=${(event) => onChange(event.target.value ? `${event.target.value.length === 16 ? `${event.target.value}:00` : event.target.value}Z` : null)} />`;
}

/** Many rows at once: scored together, listed, and each to be looked at. */
function CsvRows({ schema, samples, base, onRow }) {
  const [text, setText] = useState("");
  const [over, setOver] = useState(false);
  const [result, setResult] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const [chosen, setChosen] = useState(null);
  const [bounded, setBounded] = useState(false);
  const run = async (given) => {
    setProblem(null); setResult(null); setChosen(null);
    let read;
    try {
      read = rowsOf(given, schema);
      setBusy(true);
      const answer = await call(`${base}/anomaly-score`, { method: "POST", body: { instances: read.rows, ...(bounded && { false_discovery_rate: FALSE_DISCOVERY_RATE }) } });
      setResult({ ...read, ...answer });
      const worst = answer.scores.indexOf(Math.max(...answer.scores));
      setChosen(worst);
      onRow(read.rows[worst]);
    } catch (refusal) {
      setProblem(Object.assign(refusal, { lines: read?.lines }));
    }
    setBusy(false);
  };
  const take = async (file) => { const content = await textOfFile(file); setText(content.length > 200_000 ? "" : content); run(content); };
  const drop = (event) => { event.preventDefault(); setOver(false); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); };
  const example = () => {
    const names = schema.columns.map(({ name }) => name);
    setText(csvText(names.length ? [names, ...samples.map((row) => names.map((name) => row[name]))] : samples));
  };
  return html`<div class=${`stack drop-area ${over ? "over" : ""}`} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <div class="field"><label for="csv">Paste rows${schema.columns.length ? ", the names of the columns in the first line" : ""}</label>
      <textarea id="csv" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)} placeholder=${schema.columns.slice(0, 6).map(({ name }) => name).join(",")}></textarea></div>
    <div class=${`drop ${over ? "over" : ""}`}><label>or drop a CSV file here, or choose one: <input type="file" accept=".csv,.tsv,.txt,text/csv" aria-label="CSV file" onChange=${(event) => event.target.files[0] && take(event.target.files[0])} /></label></div>
    <div class="row"><button type="button" class="button primary" disabled=${busy || !text.trim()} onClick=${() => run(text)}>${busy ? "Scoring…" : "Score the rows"}</button>
      ${samples.length > 0 && html`<button type="button" class="button" onClick=${example}>Sample rows</button>`}
      <label class="small"><input type="checkbox" checked=${bounded} onChange=${(event) => setBounded(event.target.checked)} /> Of the flagged rows at most ${percent(FALSE_DISCOVERY_RATE)} by mistake</label></div>
    <${Failure} problem=${problem} lineOf=${problem?.lines ? (at) => problem.lines[at] ?? "–" : undefined} />
    ${result && html`<${Scored} result=${result} chosen=${chosen} onChoose=${(at) => { setChosen(at); onRow(result.rows[at]); }} />`}
  </div>`;
}

function Scored({ result, chosen, onChoose }) {
  const order = result.scores.map((_, at) => at).sort((a, b) => result.scores[b] - result.scores[a]);
  const flagged = result.is_anomaly.filter(Boolean).length;
  const highest = Math.max(...result.scores, result.threshold);
  const saveAll = () => save("scores.csv", csvText([["line", "score", "p_value", "is_anomaly"], ...result.scores.map((score, at) => [result.lines[at], score, result.p_values[at], result.is_anomaly[at]])]));
  return html`<div class="stack"><p><b>${plural(flagged, "row")} of ${count(result.rows.length)} flagged</b> (${percent(flagged / result.rows.length)}; ${result.false_discovery_rate
        ? html`at most ${percent(result.false_discovery_rate)} of them by mistake, on average`
        : html`${percent(result.false_alarm_rate)} would be by mistake if all were ordinary`}).
      ${result.ignored.length > 0 && html` Columns that the model does not know were left out: ${result.ignored.join(", ")}.`}</p>
    ${result.warning && html`<p class="message warn small">${result.warning}</p>`}
    <div class="scroll" tabindex="0" role="region" aria-label="Scored rows" style=${{ maxHeight: "340px", overflowY: "auto" }}><table>
      <thead><tr><th scope="col">Line</th><th scope="col">Score</th><th scope="col" class="right">p-value</th><th scope="col"></th></tr></thead>
      <tbody>${order.slice(0, MAX_LISTED).map((at) => html`<tr class="pick" aria-selected=${at === chosen ? "true" : undefined} onClick=${() => onChoose(at)}>
        <th scope="row"><button type="button" class="button plain small" aria-label=${`Look at line ${result.lines[at]}`}>${result.lines[at]}</button></th>
        <td><div class="bars"><div class="track" style=${{ minWidth: "70px" }}><div class=${`fill ${result.is_anomaly[at] ? "" : "cool"}`} style=${{ width: `${(100 * result.scores[at]) / highest}%` }}></div></div></div><span class="number small">${number(result.scores[at])}</span></td>
        <td class="right number">${number(result.p_values[at], 2)}</td><td>${result.is_anomaly[at] ? html`<span class="badge bad">flagged</span>` : ""}</td></tr>`)}</tbody></table></div>
    <div class="row"><button type="button" class="button small" onClick=${saveAll}>Save all scores as CSV</button>${order.length > MAX_LISTED && html`<span class="small muted">The ${MAX_LISTED} highest are listed.</span>`}</div></div>`;
}
