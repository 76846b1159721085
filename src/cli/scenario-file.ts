// A scenario file: YAML or JSON text to a plain value, and any place in that value back to line and column.
//
// The text is read whole, up to a limit. What would grow without end (aliases of aliases, nesting) is refused.
// What the value means is the API's business: checkScenario() and runScenario().

import { createReadStream } from 'node:fs';
import { Composer, type CST, isAlias, isMap, isNode, isScalar, isSeq, LineCounter, type Node, Parser } from 'yaml';
import type { ScenarioPath } from '../index.ts';

/** The input can't be used; the message, with its place, says why. The command ends with 2. */
export class InputError extends Error {}

const BYTES_MAX = 512 * 1024;
const DEPTH_MAX = 32;
/** Values of the scenario, those that aliases repeat counted each time. */
const VALUES_MAX = 200_000;

export interface ScenarioFile {
  scenario: unknown;
  /** `file:line:column` of a place in the scenario. */
  place(path: ScenarioPath, atKey?: boolean): string;
}

/**
 * Reads the scenario in `file`, or on standard input for '-'.
 * @throws {InputError} if it can't be read or is no well-formed YAML or JSON, with line and column.
 */
export async function readScenarioFile(file: string): Promise<ScenarioFile> {
  const name = file === '-' ? 'standard input' : file;
  let bytes: Buffer;
  try {
    bytes = await readLimited(file === '-' ? process.stdin : createReadStream(file, { end: BYTES_MAX }));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'there is no such file' : code === 'EISDIR' ? 'it is a directory' : message;
    throw new InputError(`${name}: can't be read: ${reason}`);
  }
  if (bytes.length > BYTES_MAX) throw new InputError(`${name}:1:1: larger than ${BYTES_MAX} bytes, the limit`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new InputError(`${name}:1:1: is not UTF-8 text`);
  }
  return parseScenarioText(text, name);
}

/** What `stream` holds, up to a little more than the limit: not by its size, as a pipe or a device has none. */
async function readLimited(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream) {
    chunks.push(chunk);
    length += chunk.length;
    if (length > BYTES_MAX) break;
  }
  return Buffer.concat(chunks);
}

/**
 * The scenario in `text`, which messages call `name`.
 * @throws {InputError} for anything that is no single well-formed document within the limits.
 */
export function parseScenarioText(text: string, name: string): ScenarioFile {
  const lines = new LineCounter();
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return `${name}:${Math.max(line, 1)}:${Math.max(col, 1)}`;
  };
  // The tokens come from a loop, but composing them recurses: nesting is judged in between.
  const tokens = [...new Parser(lines.addNewLine).parse(text)];
  const tooDeep = tokenDeeperThan(tokens, DEPTH_MAX);
  if (tooDeep !== undefined) throw new InputError(`${at(tooDeep)}: nests deeper than ${DEPTH_MAX}`);
  // The composer compares every key with every other; plainValue() finds a second one faster.
  const composer = new Composer({ intAsBigInt: true, uniqueKeys: false });
  const [document, second] = composer.compose(tokens, true, text.length);
  if (second !== undefined) {
    throw new InputError(`${at(second.range[0])}: a second document starts here; a scenario file holds one`);
  }
  // The first problem is the cause of the others. A warning is a tag this reader does not know and would drop.
  const problem = document.errors[0] ?? document.warnings[0];
  if (problem !== undefined) throw new InputError(`${at(problem.pos[0])}: ${problem.message}`);
  if (document.contents === null) throw new InputError(`${name}:1:1: the file is empty`);
  const anchors = new Map<string, Node>();
  const scenario = plainValue(document.contents, {
    anchors,
    values: 0,
    refuse: (offset, reason) => new InputError(`${at(offset)}: ${reason}`),
  });
  return { scenario, place: (path, atKey = false) => at(offsetOf(document.contents as Node, anchors, path, atKey)) };
}

/** The offset of the first token with more than `most` collections around it. */
function tokenDeeperThan(tokens: CST.Token[], most: number): number | undefined {
  const open = tokens.map((token) => ({ token, depth: 0 })).reverse();
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { token, depth } = next;
    if (depth > most) return token.offset;
    if (token.type === 'document' && token.value) open.push({ token: token.value, depth });
    if (!('items' in token)) continue;
    for (const item of token.items.toReversed()) {
      if (item.value) open.push({ token: item.value, depth: depth + 1 });
      if ('key' in item && item.key) open.push({ token: item.key, depth: depth + 1 });
    }
  }
  return undefined;
}

interface Reading {
  anchors: Map<string, Node>;
  values: number;
  refuse(offset: number, reason: string): InputError;
}

/** The value of `node`, with whole numbers that a double holds as numbers and larger ones as bigints. */
function plainValue(node: unknown, reading: Reading, depth = 0): unknown {
  if (!isNode(node)) return null;
  const offset = node.range?.[0] ?? 0;
  if (depth > DEPTH_MAX) throw reading.refuse(offset, `nests deeper than ${DEPTH_MAX}`);
  if (++reading.values > VALUES_MAX) throw reading.refuse(offset, `more than ${VALUES_MAX} values, aliases expanded`);
  if (isAlias(node)) {
    // Anchors stand before their aliases; an alias within its own anchor ends at the depth limit.
    const target = reading.anchors.get(node.source);
    if (target === undefined) throw reading.refuse(offset, `no anchor is named '${node.source}'`);
    return plainValue(target, reading, depth + 1);
  }
  if (node.anchor !== undefined) reading.anchors.set(node.anchor, node);
  if (isSeq(node)) return node.items.map((item) => plainValue(item, reading, depth + 1));
  if (isMap(node)) {
    const entries = new Map<string, unknown>();
    for (const { key, value } of node.items) {
      const place = isNode(key) ? (key.range?.[0] ?? offset) : offset;
      if (!isScalar(key)) throw reading.refuse(place, 'a name must be a plain word');
      const name = String(key.value);
      if (entries.has(name)) throw reading.refuse(place, `'${name}' stands twice in its mapping`);
      entries.set(name, plainValue(value, reading, depth + 1));
    }
    return Object.fromEntries(entries);
  }
  const { value } = node as { value?: unknown };
  if (typeof value !== 'bigint') return value;
  return Number.isSafeInteger(Number(value)) ? Number(value) : value;
}

/** The offset of the node that `path` leads to, or of the nearest one around it. */
function offsetOf(contents: Node, anchors: Map<string, Node>, path: ScenarioPath, atKey: boolean): number {
  let node = contents;
  for (const [index, step] of path.entries()) {
    if (isAlias(node)) node = anchors.get(node.source) ?? node;
    if (isMap(node)) {
      const pair = node.items.find(({ key }) => isScalar(key) && String(key.value) === String(step));
      if (pair === undefined) break;
      const isLast = index === path.length - 1;
      if (isNode(pair.key) && ((isLast && atKey) || !isNode(pair.value))) return pair.key.range?.[0] ?? 0;
      node = pair.value as Node;
    } else if (isSeq(node) && isNode(node.items[Number(step)])) node = node.items[Number(step)] as Node;
    else break;
  }
  return node.range?.[0] ?? 0;
}
