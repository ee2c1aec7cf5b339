// Rows of texts out of files that a person drops: .jsonl, .json, .csv and plain texts.

export const TEXT_COLUMNS = ["text", "prompt", "caption", "prediction", "predicted", "truth", "target"];
const FILE_COLUMNS = ["file", "file_name", "filename", "image", "picture", "path", "name"];

/** `{ name, columns, rows }` of the files of one drop; rows are objects. Throws an Error with a sentence. */
export async function readTables(files) {
  const texts = files.filter((file) => /\.(txt|caption)$/i.test(file.name));
  if (texts.length === files.length) {
    if (texts.length === 1) return lines(texts[0].name, await texts[0].text());
    const rows = await Promise.all(texts.map(async (file) => ({ file: file.name, text: (await file.text()).trim() })));
    return { name: `${rows.length} text files`, columns: ["text"], rows };
  }
  if (files.length > 1) throw new Error("Drop one table at a time, or only .txt files.");
  const [file] = files;
  const content = (await file.text()).replace(/^\ufeff/, "");
  if (/\.csv$/i.test(file.name)) return table(file.name, csv(content));
  if (/\.jsonl?$/i.test(file.name)) return table(file.name, json(content, file.name));
  throw new Error(`${file.name} is no .jsonl, .json, .csv or .txt file.`);
}

/** The picture that a row is about, or null. */
export function fileOf(row) {
  const column = FILE_COLUMNS.find((name) => typeof row[name] === "string" && row[name] !== "");
  return column ? row[column] : null;
}

function table(name, rows) {
  const columns = [...new Set(rows.slice(0, 100).flatMap((row) => Object.keys(row).filter((key) => typeof row[key] === "string")))];
  const texts = columns.filter((column) => !FILE_COLUMNS.includes(column));
  const known = TEXT_COLUMNS.filter((column) => texts.includes(column));
  if (texts.length === 0) throw new Error(`${name} holds no column of texts.`);
  return { name, columns: [...known, ...texts.filter((column) => !known.includes(column))], rows };
}

function lines(name, content) {
  const texts = content.trim().split(/\r?\n/);
  return { name, columns: ["text"], rows: texts.map((text) => ({ text })) };
}

function json(content, name) {
  const isObject = (row) => row !== null && typeof row === "object" && !Array.isArray(row);
  try {
    if (content.trimStart().startsWith("[")) return JSON.parse(content).filter(isObject);
    return content.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line)).filter(isObject);
  } catch (error) {
    throw new Error(`${name} is not JSON: ${error.message}`, { cause: error });
  }
}

/** As RFC 4180 has it: fields in quotes may hold commas, line ends and doubled quotes. */
export function csv(content) {
  const rows = [];
  let row = [];
  let field = "";
  let quoted = false;
  for (let at = 0; at < content.length; at += 1) {
    const letter = content[at];
    if (quoted) {
      if (letter !== '"') field += letter;
      else if (content[at + 1] === '"') field += content[(at += 1)];
      else quoted = false;
    } else if (letter === '"' && field === "") quoted = true;
    else if (letter === ",") row.push(field), (field = "");
    else if (letter === "\n") rows.push([...row, field.replace(/\r$/, "")]), (row = []), (field = "");
    else field += letter;
  }
  if (field !== "" || row.length > 0) rows.push([...row, field]);
  const [heading = [], ...rest] = rows;
  const filled = rest.filter((values) => values.length > 1 || values[0] !== ""); // an empty line is no row
  return filled.map((values) => Object.fromEntries(heading.map((column, index) => [column, values[index] ?? ""])));
}
