// CSV as the reader of tables has it (docs/tables.md), in the browser: the same delimiters, blanks, marks in numbers and missing values.

/** Lines of cells, each with the number of the line of the text that it begins on. Blanks around cells without quotation marks are left out. */
export function parseCsv(text) {
  const hint = /^sep=(.)(\r\n|\n|\r)/i.exec(text);
  const separator = hint?.[1] ?? guessSeparator(text);
  const records = [];
  let cells = [], cell = "", quoted = false, closed = false, line = hint ? 2 : 1, begun = line;
  const endCell = () => { cells.push(closed ? cell : cell.trim()); cell = ""; closed = false; };
  const endRecord = () => {
    endCell();
    if (cells.length > 1 || cells[0] !== "") records.push({ cells, line: begun });
    cells = [];
  };
  for (let at = hint?.[0].length ?? 0; at < text.length; at += 1) {
    const sign = text[at];
    if (sign === "\n") line += 1;
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[at + 1] === '"') { cell += '"'; at += 1; } else { quoted = false; closed = true; }
    } else if (sign === '"' && cell.trim() === "" && !closed) { quoted = true; cell = ""; }
    else if (sign === separator) endCell();
    else if (sign === "\n") { endRecord(); begun = line; } else if (sign !== "\r" && !(closed && sign === " ")) cell += sign;
  }
  endRecord();
  return records;
}

function guessSeparator(text) {
  const first = text.slice(0, text.indexOf("\n") + 1 || text.length).replaceAll(/"[^"]*"/g, "");
  return [",", ";", "\t", "|"].map((sign) => [first.split(sign).length, sign]).sort((a, b) => b[0] - a[0])[0][1];
}

const MISSING = new Set(["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"]);
const TRUTH = { true: true, false: false, 1: true, 0: false };
const NUMBERS = {
  ".": /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|^[-+]?[1-9]\d{0,2}([,'\u2019 \u00a0\u202f]\d{3})+(\.\d*)?$/i,
  ",": /^[-+]?(\d+,?\d*|,\d+)(e[-+]?\d+)?$|^[-+]?[1-9]\d{0,2}([.'\u2019 \u00a0\u202f]\d{3})+(,\d*)?$/i,
};

/** The decimal mark of each column of cells: where a column could have either, the others decide, and a point where none does. */
export function decimalMarks(columns) {
  const fits = columns.map((cells) => {
    const marked = cells.filter((cell) => /[.,]/.test(cell));
    return marked.length ? [",", "."].filter((mark) => marked.every((cell) => NUMBERS[mark].test(cell))) : [];
  });
  const surely = (mark) => fits.some((marks) => marks.length === 1 && marks[0] === mark);
  if (surely(",") && !surely(".")) return columns.map(() => ",");
  return fits.map((marks) => (marks.length === 1 ? marks[0] : "."));
}

/** A cell as the service takes it. What does not fit is sent as it is: the service says what is wrong, by row and column. */
export function cellOf(text, type, decimal = ".") {
  if (type === "categorical") return text === "" ? null : text;
  const trimmed = text.trim();
  if (MISSING.has(trimmed)) return null;
  if (type === "boolean") return TRUTH[trimmed.toLowerCase()] ?? trimmed;
  if (type === "timestamp") return timeOf(trimmed);
  if (!NUMBERS[decimal].test(trimmed)) return trimmed;
  const digits = trimmed.replaceAll(/['\u2019 \u00a0\u202f]/g, "");
  return Number(decimal === "," ? digits.replaceAll(".", "").replace(",", ".") : digits.replaceAll(",", ""));
}

function timeOf(text) {
  if (/^-?\d{9,15}$/.test(text)) return Number(text);
  const german = /^(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,?[T ]\s*(.+))?$/.exec(text);
  const slashed = /^(\d{4})\/(\d{1,2})\/(\d{1,2})(?:[T ]\s*(.+))?$/.exec(text);
  if (!german && !slashed) return text;
  const [year, month, day] = german ? [german[3], german[2], german[1]] : slashed.slice(1, 4);
  const clock = (german ?? slashed)[4];
  return `${year}-${month.padStart(2, "0")}-${day.padStart(2, "0")}${clock ? `T${/^\d:\d\d$/.test(clock) ? `0${clock}` : clock}` : ""}`;
}

/** The text of a file in UTF-8, or in UTF-16 with a mark. */
export async function textOfFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = { "255,254": "utf-16le", "254,255": "utf-16be" }[bytes.slice(0, 2).join()] ?? "utf-8";
  return new TextDecoder(encoding).decode(bytes);
}

/**
 * Rows for a table model: {rows, lines, ignored}. ignored: columns of the text that the model does not know.
 * Throws an Error with a sentence when no rows can be made of it.
 */
export function rowsOf(text, schema) {
  const records = parseCsv(text.replace(/^\uFEFF/, ""));
  if (!records.length) throw new Error("There are no rows in it.");
  const named = schema.columns.length > 0;
  const isRow = (cells) => cells.every((cell) => Number.isFinite(cellOf(cell, "numeric")) || Number.isFinite(cellOf(cell, "numeric", ",")));
  const body = named || !isRow(records[0].cells) ? records.slice(1) : records;
  const marks = decimalMarks(records[0].cells.map((_, at) => body.map(({ cells }) => cells[at] ?? "")));
  const lines = body.map(({ line }) => line);
  if (!named) return { rows: body.map(({ cells }) => cells.map((cell, at) => cellOf(cell, "numeric", marks[at]))), lines, ignored: [] };
  const names = records[0].cells;
  const types = new Map(schema.columns.map(({ name, type }) => [name, type]));
  if (!names.some((name) => types.has(name))) throw new Error(`The first line must name the columns: ${schema.columns.map(({ name }) => name).join(", ")}.`);
  if (!body.length) throw new Error("There is a line of names, but no rows follow it.");
  const known = names.map((name, at) => [name, at]).filter(([name]) => types.has(name));
  return {
    rows: body.map(({ cells }) => Object.fromEntries(known.map(([name, at]) => [name, cellOf(cells[at] ?? "", types.get(name), marks[at])]))),
    lines,
    ignored: names.filter((name) => name && !types.has(name)),
  };
}

/** Lines of a CSV file. */
export function csvText(lines) {
  const quoted = (cell) => (/[",\n]/.test(String(cell ?? "")) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell ?? ""));
  return lines.map((cells) => cells.map(quoted).join(",")).join("\r\n");
}

export function save(name, text, type = "text/csv") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
