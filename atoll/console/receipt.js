/** Receipts are checked where they are read: Ed25519 over canonical JSON (keys sorted, no white space). */

const decoded = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));

function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
}

/** Whether the signature holds; null where the browser cannot tell. */
export async function signed({ signature, ...told }, { public_key, key_id }) {
  if (told.key_id !== key_id) return false;
  try {
    const key = await crypto.subtle.importKey("raw", decoded(public_key), "Ed25519", false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", key, decoded(signature), new TextEncoder().encode(canonical(told)));
  } catch (error) {
    if (error instanceof TypeError || error.name === "NotSupportedError") return null;
    throw error;
  }
}
