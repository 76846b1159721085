// A scenario file: YAML or JSON text to a plain value, and any place in that value back to line and column.
//
// The text is read whole, up to a limit; what the parser would have to expand without end (aliases of aliases, nesting) is
// refused. What the value means is the API's business: checkScenario() and runScenario().

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import {
  Alias,
  type Document,
  isMap,
  isNode,
  isPair,
  isSeq,
  LineCounter,
  type Node,
  parseDocument,
  Scalar,
} from 'yaml';
import type { ScenarioPath } from '../index.ts';

/** The input can't be used; the message, with its place, says why. The command ends with 2. */
export class InputError extends Error {}

const BYTES_MAX = 1 << 20;
const ALIASES_MAX = 100;
const DEPTH_MAX = 32;
const FAULTS_SHOWN = 10;

export interface ScenarioFile {
  scenario: unknown;
  /** `file:line:column` of a place in the scenario. */
  place(path: ScenarioPath, atKey?: boolean): string;
}

/**
 * Reads the scenario in `file`, or on standard input for '-'.
 * @throws {InputError} if it can't be read or is no well-formed YAML or JSON, with line and column.
 */
export function readScenarioFile(file: string): ScenarioFile {
  return parseScenarioText(readText(file), file === '-' ? 'standard input' : file);
}

function readText(file: string): string {
  let descriptor: number | undefined;
  try {
    descriptor = file === '-' ? 0 : openSync(file, 'r');
    if (fstatSync(descriptor).isDirectory()) throw new InputError(`${file}: is a directory, not a scenario file`);
    // Not by its size: a pipe or a device has none.
    const bytes = Buffer.alloc(BYTES_MAX + 1);
    let length = 0;
    while (length < bytes.length) {
      const count = readSync(descriptor, bytes, length, bytes.length - length, null);
      if (count === 0) break;
      length += count;
    }
    if (length > BYTES_MAX)
      throw new InputError(`${file}:1:1: larger than ${BYTES_MAX} bytes, the limit of a scenario`);
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, length));
  } catch (error) {
    if (error instanceof InputError) throw error;
    if (error instanceof TypeError) throw new InputError(`${file}: is not UTF-8 text`);
    throw new InputError(`${file}: can't be read: ${(error as Error).message}`);
  } finally {
    if (descriptor !== undefined && descriptor !== 0) closeSync(descriptor);
  }
}

/**
 * The scenario in `text`, which messages call `name`.
 * @throws {InputError} for anything that is no single well-formed document within the limits.
 */
export function parseScenarioText(text: string, name: string): ScenarioFile {
  const tooDeep = nestsDeeperThan(text, DEPTH_MAX);
  if (tooDeep !== undefined) throw new InputError(`${name}:${tooDeep}: nests deeper than ${DEPTH_MAX}`);
  const lines = new LineCounter();
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${name}:${Math.max(line, 1)}:${Math.max(col, 1)}`;
  };
  let document: Document.Parsed;
  try {
    document = parseDocument(text, { lineCounter: lines, prettyErrors: false, intAsBigInt: true, uniqueKeys: true });
  } catch (error) {
    if (error instanceof RangeError) throw new InputError(`${name}:1:1: nests too deep`);
    throw error;
  }
  const [first, ...more] = document.errors;
  if (first !== undefined) {
    const shown = [first, ...more].slice(0, FAULTS_SHOWN).map(({ pos, message }) => `${at(pos[0])}: ${message}`);
    throw new InputError(shown.join('\n'));
  }
  if (document.contents === null) throw new InputError(`${name}:1:1: the file is empty`);
  let scenario: unknown;
  try {
    scenario = plain(document.toJS({ maxAliasCount: ALIASES_MAX }), 0);
  } catch (error) {
    if (error instanceof ReferenceError)
      throw new InputError(`${name}:1:1: aliases expand to too much: ${error.message}`);
    if (error instanceof RangeError) throw new InputError(`${name}:1:1: nests deeper than ${DEPTH_MAX}`);
    throw error;
  }
  return {
    scenario,
    place: (path, atKey = false) => at(offsetOf(document, path, atKey)),
  };
}

/**
 * Where brackets nest deeper than `most`, by a look at the text alone: the parser calls itself for each.
 * Brackets in quotes and comments do not count; a quote is taken for one only where a value can start.
 */
function nestsDeeperThan(text: string, most: number): string | undefined {
  let depth = 0;
  let line = 1;
  let lineStart = 0;
  for (const match of text.matchAll(/\n|"(?:[^"\\]|\\.)*"|(?<=[\s[{,:])'(?:[^']|'')*'|(?<=^|\s)#.*|[[\]{}]/gm)) {
    const [found] = match;
    if (found === '[' || found === '{') {
      if (++depth > most) return `${line}:${match.index - lineStart + 1}`;
    } else if (found === ']' || found === '}') depth = Math.max(0, depth - 1);
    for (let next = found.indexOf('\n'); next >= 0; next = found.indexOf('\n', next + 1)) {
      line++;
      lineStart = match.index + next + 1;
    }
  }
  return undefined;
}

/** `value` with the whole numbers a double holds as numbers. Aliases that form a circle end at the depth limit. */
function plain(value: unknown, depth: number): unknown {
  if (depth > DEPTH_MAX) throw new RangeError();
  if (typeof value === 'bigint') {
    const asNumber = Number(value);
    return Number.isSafeInteger(asNumber) ? asNumber : value;
  }
  if (Array.isArray(value)) return value.map((entry) => plain(entry, depth + 1));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, plain(entry, depth + 1)]));
}

/** The offset of the node that `path` leads to, or of the nearest one around it. */
function offsetOf(document: Document.Parsed, path: ScenarioPath, atKey: boolean): number {
  let node: Node = document.contents as Node;
  for (const [index, step] of path.entries()) {
    if (node instanceof Alias) node = node.resolve(document) ?? node;
    if (isMap(node)) {
      const pair = node.items.find(({ key }) => String(key instanceof Scalar ? key.value : key) === String(step));
      if (!isPair(pair)) break;
      const last = index === path.length - 1;
      if (isNode(pair.key) && ((last && atKey) || !isNode(pair.value))) return pair.key.range?.[0] ?? 0;
      node = pair.value as Node;
    } else if (isSeq(node) && isNode(node.items[Number(step)])) node = node.items[Number(step)] as Node;
    else break;
  }
  return node.range?.[0] ?? 0;
}
