// The row that was tried last, and images that were scored together, for the latent map. They stay in this page's memory.
let last = null;
let batch = { rows: [] };

export const tried = {
  keep(study) { last = study; },
  of(model, version) { return last?.model === model && last.version === version ? last : null; },
  /** rows: [{name, row, score}]. */
  keepBatch(model, version, rows) { batch = { model, version, rows }; },
  batchOf(model, version) { return batch.model === model && batch.version === version ? batch.rows : []; },
};
