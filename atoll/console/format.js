/** Numbers, money and times as people read them. */

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (n) => grouped.format(n);
export const short = (n) => (n < 10_000 ? grouped.format(n) : compact.format(n));

/** US dollars: two decimals from one dollar up, two significant digits below one cent. */
export function money(usd) {
  if (usd === null || usd === undefined) return "–";
  if (usd === 0) return "$0";
  if (usd >= 0.995) return "$" + usd.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const decimals = usd >= 0.01 ? 4 : Math.min(12, 1 - Math.floor(Math.log10(usd)));
  return "$" + usd.toFixed(decimals).replace(/(\.\d\d\d*?)0+$/, "$1");
}

export function bytes(n) {
  if (!n) return "–";
  const unit = Math.min(4, Math.floor(Math.log10(n) / 3));
  const value = n / 1000 ** unit;
  return `${value >= 100 || unit < 2 ? value.toFixed(0) : value.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 100_000 ? 1 : 0)} s`;
}

export function span(seconds) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  let left = seconds;
  return parts.slice(first, first + 2).map(([name, size]) => {
    const n = Math.floor(left / size);
    left -= n * size;
    return n ? `${n} ${name}` : "";
  }).filter(Boolean).join(" ");
}

export const date = (s) => new Date(s * 1000).toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
export const clock = (s) => new Date(s * 1000).toLocaleTimeString("en", { hour12: false });

export function ago(seconds) {
  const gone = Date.now() / 1000 - seconds;
  if (gone < 5) return "now";
  if (gone < 60) return `${Math.floor(gone)} s ago`;
  if (gone < 3600) return `${Math.floor(gone / 60)} min ago`;
  return gone < 86400 ? clock(seconds) : `${date(seconds)} ${clock(seconds)}`;
}
