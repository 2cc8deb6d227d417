// How well scores tell labelled rows apart, as docs/scores.md has it: higher scores first, ties together.

/** {auroc, aupr} of scores against labels (true: an anomaly); null where all labels are the same. */
export function ranking(scores, labels) {
  const anomalies = labels.filter(Boolean).length, others = labels.length - anomalies;
  if (!anomalies || !others) return null;
  const order = scores.map((_, at) => at).sort((a, b) => scores[b] - scores[a]);
  let [caught, wrong, auroc, aupr] = [0, 0, 0, 0];
  for (let at = 0; at < order.length;) {
    let [hits, misses] = [0, 0];
    for (const score = scores[order[at]]; at < order.length && scores[order[at]] === score; at += 1) {
      if (labels[order[at]]) hits += 1;
      else misses += 1;
    }
    auroc += misses * (caught + hits / 2);
    caught += hits;
    wrong += misses;
    aupr += (hits / anomalies) * (caught / (caught + wrong));
  }
  return { auroc: auroc / (anomalies * others), aupr };
}
