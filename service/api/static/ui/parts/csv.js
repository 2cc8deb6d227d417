// CSV as RFC 4180 has it, with commas, semicolons or tabs, read in the browser.

/** Lines of cells, each with the number of the line of the text that it begins on. */
export function parseCsv(text) {
  const separator = guessSeparator(text);
  const records = [];
  let cells = [], cell = "", quoted = false, line = 1, begun = 1;
  const endRecord = () => {
    cells.push(cell);
    if (cells.length > 1 || cells[0].trim() !== "") records.push({ cells, line: begun });
    cells = []; cell = "";
  };
  for (let at = 0; at < text.length; at += 1) {
    const sign = text[at];
    if (sign === "\n") line += 1;
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[at + 1] === '"') { cell += '"'; at += 1; } else quoted = false;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === separator) { cells.push(cell); cell = ""; } else if (sign === "\n") { endRecord(); begun = line; } else if (sign !== "\r") cell += sign;
  }
  endRecord();
  return records;
}

function guessSeparator(text) {
  const first = text.slice(0, text.indexOf("\n") + 1 || text.length);
  return [",", ";", "\t"].map((sign) => [first.split(sign).length, sign]).sort((a, b) => b[0] - a[0])[0][1];
}

const MISSING = new Set(["", "na", "n/a", "nan", "null", "none"]);
const TRUTH = { true: true, false: false, yes: true, no: false, 1: true, 0: false };

/** A cell as the service takes it. What does not fit is sent as it is: the service says what is wrong, by row and column. */
export function cellOf(text, type) {
  const trimmed = text.trim();
  if (MISSING.has(trimmed.toLowerCase())) return null;
  if (type === "boolean") return TRUTH[trimmed.toLowerCase()] ?? trimmed;
  if (type === "categorical") return trimmed;
  if (type === "timestamp") return /^-?\d+$/.test(trimmed) ? Number(trimmed) : trimmed;
  const read = Number(trimmed);
  return Number.isFinite(read) ? read : trimmed;
}

/**
 * Rows for a table model: {rows, lines, ignored}. ignored: columns of the text that the model does not know.
 * Throws an Error with a sentence when no rows can be made of it.
 */
export function rowsOf(text, schema) {
  const records = parseCsv(text.replace(/^\uFEFF/, ""));
  if (!records.length) throw new Error("There are no rows in it.");
  if (!schema.columns.length) {
    const body = records[0].cells.every((cell) => Number.isFinite(Number(cell)) && cell.trim()) ? records : records.slice(1);
    return { rows: body.map(({ cells }) => cells.map((cell) => cellOf(cell, "numeric"))), lines: body.map(({ line }) => line), ignored: [] };
  }
  const [head, ...body] = records;
  const names = head.cells.map((cell) => cell.trim());
  const types = new Map(schema.columns.map(({ name, type }) => [name, type]));
  if (!names.some((name) => types.has(name))) throw new Error(`The first line must name the columns: ${schema.columns.map(({ name }) => name).join(", ")}.`);
  if (!body.length) throw new Error("There is a line of names, but no rows follow it.");
  const known = names.map((name, at) => [name, at]).filter(([name]) => types.has(name));
  return {
    rows: body.map(({ cells }) => Object.fromEntries(known.map(([name, at]) => [name, cellOf(cells[at] ?? "", types.get(name))]))),
    lines: body.map(({ line }) => line),
    ignored: names.filter((name) => !types.has(name)),
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
