// Two texts, word by word: what is only in the one, only in the other, and in both.

const MOST = 4_000_000; // cells of the table; of longer texts only what they begin and end with alike is found

/** Words with the spaces and signs between them: joined they are the text again. */
export const pieces = (text) => text.match(/[\p{L}\p{N}'’_-]+|\s+|[^\p{L}\p{N}'’_\s-]/gu) ?? [];

/** `[{ kind: "same" | "left" | "right", text }]`: the heaviest common subsequence of the pieces. */
export function differences(left, right) {
  const a = pieces(left);
  const b = pieces(right);
  const same = (i, j) => a[i] === b[j];
  let start = 0;
  while (start < a.length && start < b.length && same(start, start)) start += 1;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && same(endA - 1, endB - 1)) {
    endA -= 1;
    endB -= 1;
  }
  const parts = [];
  const add = (kind, text) => {
    if (parts.at(-1)?.kind === kind) parts.at(-1).text += text;
    else parts.push({ kind, text });
  };
  for (let i = 0; i < start; i += 1) add("same", a[i]);
  for (const [kind, text] of middle(a.slice(start, endA), b.slice(start, endB))) add(kind, text);
  for (let i = endA; i < a.length; i += 1) add("same", a[i]);
  return parts;
}

function middle(a, b) {
  if (a.length * b.length > MOST) return [...a.map((text) => ["left", text]), ...b.map((text) => ["right", text])];
  const width = b.length + 1;
  const heaviest = new Uint32Array((a.length + 1) * width);
  const weights = a.map((piece) => (/[\p{L}\p{N}]/u.test(piece) ? 4 : 1)); // a word in common tells more than a space
  const same = (i, j) => a[i] === b[j];
  for (let i = a.length - 1; i >= 0; i -= 1)
    for (let j = b.length - 1; j >= 0; j -= 1)
      heaviest[i * width + j] = Math.max(
        same(i, j) ? heaviest[(i + 1) * width + j + 1] + weights[i] : 0,
        heaviest[(i + 1) * width + j],
        heaviest[i * width + j + 1],
      );
  const parts = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    const both = i < a.length && j < b.length && same(i, j);
    if (both && heaviest[i * width + j] === heaviest[(i + 1) * width + j + 1] + weights[i]) {
      parts.push(["same", a[i]]);
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && heaviest[(i + 1) * width + j] >= heaviest[i * width + j + 1])) {
      parts.push(["left", a[i]]);
      i += 1;
    } else {
      parts.push(["right", b[j]]);
      j += 1;
    }
  }
  return parts;
}
