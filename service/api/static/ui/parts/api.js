// Calls of the service that this page came from. Keys live as long as the tab and go nowhere else.

/** The page stands at …/ui, so this is where the routes begin, behind a proxy's prefix too. */
const ROOT = new URL(".", document.baseURI);
const KEY = "autoencoder.key";
const ADMIN_KEY = "autoencoder.admin-key";

/** An answer that is not what was asked for, as RFC 9457 has it. */
export class Problem extends Error {
  constructor(status, { title, detail, errors = [], request_id: requestId } = {}) {
    super(detail ?? "The service cannot be reached.");
    Object.assign(this, { status, title: title ?? "The service cannot be reached", errors, requestId });
  }
}

export const keys = {
  get caller() { return sessionStorage.getItem(KEY) ?? sessionStorage.getItem(ADMIN_KEY); },
  get admin() { return sessionStorage.getItem(ADMIN_KEY); },
  setCaller(key) { sessionStorage.setItem(KEY, key); },
  setAdmin(key) { sessionStorage.setItem(ADMIN_KEY, key); },
  forget() { sessionStorage.removeItem(KEY); sessionStorage.removeItem(ADMIN_KEY); },
};

export function addressOf(path) {
  return new URL(path, ROOT).href;
}

async function send(path, { method = "GET", body, admin = false, signal } = {}) {
  const headers = {};
  const key = admin ? keys.admin ?? keys.caller : keys.caller;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(addressOf(path), { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0);
  }
  if (response.ok) return response;
  const problem = new Problem(response.status, await response.json().catch(() => ({})));
  if (response.status === 401 && !admin) dispatchEvent(new CustomEvent("key-needed", { detail: { wrong: Boolean(key) } }));
  throw problem;
}

export async function call(path, options) {
  return (await send(path, options)).json();
}

export async function textOf(path, options) {
  return (await send(path, options)).text();
}

/** An address of the answer's bytes within this page. Give it back with URL.revokeObjectURL. */
export async function objectUrl(path, options) {
  return URL.createObjectURL(await (await send(path, options)).blob());
}

export const modelPath = (model) => `models/${encodeURIComponent(model)}`;
export const versionPath = (model, version) => `${modelPath(model)}/versions/${version}`;
