/* Numbers for people, as moe_core/words.py writes them: nearest value, a tie away from zero. A test runs both. */

function number(value) {
  if (value !== value) return "unknown";
  const size = Math.abs(value);
  if (size >= 10) return value.toFixed(0).replace(/\B(?=(\d{3})+$)/g, ",");
  if (size < 5e-5) return "0";
  if (size >= 1) return value.toFixed(1);
  return Number(value.toPrecision(2)).toFixed(5).replace(/\.?0+$/, "");
}

function percent(share) {
  if (share !== share) return "unknown";
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return `${(100 * share).toFixed(share > 0 && share < 0.0095 ? 1 : 0)} %`;
}

function signed(change) {
  if (change !== change) return "";
  const text = number(Math.abs(change));
  return text === "0" ? text : `${change < 0 ? "\u2212" : "+"}${text}`;
}

function partsOfAll(counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return counts.map(() => "0 %");
  const points = Math.max(...counts) * 200 < 19 * total ? 1000 : 100;
  const shares = counts.map((count) => Math.floor((count * points) / total));
  const lost = counts.map((count, i) => [(count * points) % total, i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  const missing = points - shares.reduce((sum, share) => sum + share, 0);
  for (const [, i] of lost.slice(0, missing)) shares[i] += 1;
  return shares.map((share, i) => {
    if (counts[i] && !share) return `under ${points === 1000 ? "0.1" : "1"} %`;
    return points === 1000 ? `${(share / 10).toFixed(1)} %` : `${share} %`;
  });
}
