// What follows from an entry of the history; store.js says what it holds.

/** The file name of one of its images: model and seed, as the server's own examples have it. */
export const fileName = (entry, i) =>
  `${entry.answer.model}-${entry.answer.seeds[i]}.${entry.answer.output_format === "jpeg" ? "jpg" : entry.answer.output_format}`;

/** Whether all that its job was made of is there: the server does not keep the references of a job that has ended. */
export const hasReferences = (entry) => entry.fields.mode !== "edit" || entry.references.length > 0;
