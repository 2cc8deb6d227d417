// Model cards: the part of Markdown that they use, straight to elements. Nothing in a card can become markup.
import { html } from "./base.js";

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s]+\*|\[[^\]]+\]\([^)\s]+\))/;

function inline(text) {
  return text.split(INLINE).map((part) => {
    if (part.startsWith("`") && part.endsWith("`") && part.length > 2) return html`<code>${part.slice(1, -1)}</code>`;
    if (part.startsWith("**") && part.endsWith("**") && part.length > 4) return html`<b>${part.slice(2, -2)}</b>`;
    if (/^\*[^*\s]+\*$/.test(part)) return html`<em>${part.slice(1, -1)}</em>`;
    const link = /^\[([^\]]+)\]\((https?:\/\/[^)\s]+)\)$/.exec(part);
    return link ? html`<a href=${link[2]} rel="noreferrer">${link[1]}</a>` : part.replace(/\\([|*_`[\]<>\\$#&])/g, "$1");
  });
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
const isRule = (line) => /^\s*\|?[\s:|-]+\|[\s:|-]*$/.test(line) && line.includes("-");

function table(lines) {
  const [head, , ...body] = lines;
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${`Table of ${cells(head).filter(Boolean).join(", ")}`}><table><thead><tr>${cells(head).map((cell) => html`<th scope="col">${inline(cell)}</th>`)}</tr></thead>
    <tbody>${body.map((line) => html`<tr>${cells(line).map((cell) => html`<td>${inline(cell)}</td>`)}</tr>`)}</tbody></table></div>`;
}

/** Headings go two levels down, as the card stands within a page that has its own. */
export function Markdown({ text, skipTitle = true }) {
  const blocks = [];
  const lines = text.replace(/\r/g, "").split("\n");
  let at = 0;
  const take = (belongs) => {
    const start = at;
    while (at < lines.length && belongs(lines[at])) at += 1;
    return lines.slice(start, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    const heading = /^(#{1,4})\s+(.*)$/.exec(line);
    if (!line.trim() || line.startsWith("![")) at += 1; // pictures have their own place on the page
    else if (heading) {
      at += 1;
      if (heading[1].length > 1 || !skipTitle) blocks.push(html`<h3>${inline(heading[2])}</h3>`);
    } else if (line.startsWith("```")) {
      at += 1;
      blocks.push(html`<pre tabindex="0"><code>${take((each) => !each.startsWith("```")).join("\n")}</code></pre>`);
      at += 1;
    } else if (line.includes("|") && isRule(lines[at + 1] ?? "")) blocks.push(table(take((each) => each.includes("|"))));
    else if (/^\s*[-*] /.test(line)) {
      const items = [];
      for (const each of take((next) => /^\s*[-*] |^\s{2,}\S/.test(next))) {
        if (/^\s*[-*] /.test(each)) items.push(each.replace(/^\s*[-*] /, ""));
        else items[items.length - 1] += ` ${each.trim()}`;
      }
      blocks.push(html`<ul>${items.map((item) => html`<li>${inline(item)}</li>`)}</ul>`);
    } else blocks.push(html`<p>${inline(take((each) => each.trim() && !/^(#{1,4}\s|```|\s*[-*] )/.test(each) && !(each.includes("|") && each.trim().startsWith("|"))).join(" ") || lines[at++])}</p>`);
  }
  return html`<div class="prose">${blocks}</div>`;
}
