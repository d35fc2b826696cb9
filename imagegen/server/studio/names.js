// Names of files that are saved.

/** Of one image of an entry: model and seed, as the server's own examples have it. */
export const fileName = (entry, i) =>
  `${entry.answer.model}-${entry.answer.seeds[i]}.${entry.answer.output_format === "jpeg" ? "jpg" : entry.answer.output_format}`;
