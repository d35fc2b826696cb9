// Prompts that the served model can follow, to begin with. They are English: that is what the models were trained in.

const MICRO = {
  generate: [
    "a red circle on a blue background",
    "a big yellow star at the top on a purple background",
    "a green square on the left and an orange triangle on the right on a white background",
    "a small white circle on a green gradient",
  ],
  edit: [
    "make the background green",
    "make the circle yellow",
    "add a blue star on the left",
    "turn the circle into a square",
  ],
  combine: ["the circle of image 1 on the background of image 2"],
};

const KLEIN = {
  generate: [
    "a lighthouse at dusk, long exposure, film photograph",
    "an isometric cutaway of a tiny bakery, soft morning light",
    'a paper-cut poster that says "OPEN LATE"',
    "a hummingbird in flight, macro photograph, shallow depth of field",
  ],
  edit: ["make it a rainy night", "replace the background with a plain studio wall", "as a watercolour painting"],
  combine: ["the person of image 1 wears the jacket of image 2", "put the object of image 1 into the room of image 2"],
};

/** Examples for a model and a number of references. */
export function examplesFor(model, references) {
  const set = model === "micro" ? MICRO : KLEIN;
  return references === 0 ? set.generate : references === 1 ? set.edit : set.combine;
}
