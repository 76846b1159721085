// Reads recordings (`"format":"gt1"`, one JSON object a line) and refuses what is not one.
//
// A file is read a line at a time, so its size costs nothing; a line, a count and a run each have a limit.
// Everything the replay and the comparison use is checked here, and a fault is named by file, line and column.
// Unknown keys are allowed, unknown operations are not: an operation that is skipped would be one not compared.

import { closeSync, fstatSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { type JsonPath, jsonColumn } from './json-position.ts';

/** An input that is refused, and where. */
export class InputError extends Error {
  readonly file: string;
  readonly line: number;
  readonly column: number;

  constructor(file: string, line: number, column: number, message: string) {
    super(`${file}:${line}:${column}: ${message}`);
    this.name = 'InputError';
    this.file = file;
    this.line = line;
    this.column = column;
  }
}

export interface ReadLimits {
  /** Bytes of one file after decompression. */
  fileBytes: number;
  /** Characters of one line. */
  lineLength: number;
  /** SPTE changes of one operation, runs expanded. */
  changesPerOperation: number;
  /** Other events of one operation, repetitions expanded. */
  eventsPerOperation: number;
  /** SPTE changes of one file, runs expanded. */
  changesPerFile: number;
}

export const READ_LIMITS: Readonly<ReadLimits> = {
  fileBytes: 256 << 20,
  lineLength: 32 << 20,
  changesPerOperation: 16 << 20,
  eventsPerOperation: 4 << 20,
  changesPerFile: 256 << 20,
};

/** `[asId, gfn, level, old, new]`, or with `count, gfnStep, oldStep, newStep` a run: element k is each value plus k steps. */
export type RawChange = readonly [
  asId: number,
  gfn: number,
  level: number,
  oldSpte: string,
  newSpte: string,
  count?: number,
  gfnStep?: number,
  oldStep?: number | string,
  newStep?: number | string,
];

export type RawField = number | string;
/** `[pos, name, …fields]`, or `[pos, 'rep', count, events, steps]`. */
export type RawEvent = readonly [pos: number, name: string, ...fields: unknown[]];
export type RawExit = readonly [reason: string, ...fields: RawField[]];

export interface RecordedOperation {
  readonly i: number;
  readonly op: string;
  readonly line: number;
  /** The line as parsed: the arguments, under the names of the format. */
  readonly args: Readonly<Record<string, RawField>>;
  readonly ret: number;
  readonly errno: string | undefined;
  readonly exits: readonly RawExit[] | undefined;
  readonly leftGpa: bigint | undefined;
  readonly leftSize: bigint | undefined;
  readonly dirty: readonly (readonly [first: number, count: number])[] | undefined;
  readonly changes: readonly RawChange[];
  readonly events: readonly RawEvent[];
  readonly stats: Readonly<Record<string, number>>;
  readonly leafs: readonly [number, number, number] | undefined;
  readonly tables: number | undefined;
  readonly h: string | undefined;
  /** The leafs after the operation with A and D, on selected operations. */
  readonly state: readonly RawLeafs[] | undefined;
  /** SPTE changes, runs expanded. */
  readonly changeCount: number;
}

/** A run of leafs in a recorded state; the flags are the SPTE without its PFN. */
export type RawLeafs = readonly [asId: number, level: number, gfn: number, count: number, flags: string];

export interface Recording {
  readonly file: string;
  readonly scenario: string;
  readonly maxphyaddr: number;
  readonly nxHugePages: boolean;
  readonly eagerPageSplit: boolean;
  readonly mmioCaching: boolean;
  readonly nops: number;
  readonly operations: readonly RecordedOperation[];
}

/** A unit vector: one call with a struct kvm_gfn_range, the leafs before it, what it changed. */
export interface GfnRangeVector {
  readonly line: number;
  readonly fn: 'unmap_gfn_range' | 'age_gfn' | 'test_age_gfn';
  readonly vmType: number;
  readonly slot: number;
  readonly asId: number;
  readonly start: number;
  readonly end: number;
  readonly arg: number;
  readonly attrFilter: number;
  readonly mayBlock: number;
  readonly before: readonly (readonly [level: number, gfn: number, count: number, flags: string])[];
  readonly changed: readonly (readonly [level: number, gfn: number, count: number])[];
  readonly ret: number;
  readonly src: string;
}

export interface VectorFile {
  readonly file: string;
  readonly vectors: readonly GfnRangeVector[];
}

/** A fault in a parsed line: what, and where in it. */
class Invalid extends Error {
  readonly path: JsonPath;

  constructor(path: JsonPath, message: string) {
    super(message);
    this.path = path;
  }
}

const GFN_MAX = 2 ** 52;
const CHUNK_BYTES = 1 << 16;

type ArgumentKind = 'hex' | 'int' | 'text';

const SLOT_ARGS = { v2: 'int', as_id: 'int', slot: 'int', flags: 'int', gpa: 'hex', size: 'hex', hva: 'hex' } as const;

/** The operations of the format with their arguments. */
const OPERATIONS: Readonly<Record<string, Readonly<Record<string, ArgumentKind>>>> = {
  create_vm: { type: 'int' },
  destroy_vm: {},
  set_memslot: { ...SLOT_ARGS, gmem: 'int', gmem_off: 'hex' },
  mmap: { kind: 'text', hva: 'hex', size: 'int' },
  mmap_fixed: { hva: 'hex', len: 'int' },
  munmap: { hva: 'hex', len: 'int' },
  mremap: { old: 'hex', len: 'int', new: 'hex' },
  mprotect: { hva: 'hex', len: 'int', prot: 'int' },
  madvise: { advice: 'text', hva: 'hex', len: 'int' },
  host_access: { write: 'int', hva: 'hex', len: 'int', step: 'int' },
  pre_fault_memory: { gpa: 'hex', size: 'hex', flags: 'int' },
  guest_access: { kind: 'text', gpa: 'hex', stride: 'hex', count: 'int' },
  enable_cap: { cap: 'text', arg0: 'int' },
  get_dirty_log: { slot: 'int' },
  clear_dirty_log: { slot: 'int', first: 'int', num: 'int', pattern: 'hex' },
  write_param: { path: 'text', value: 'text' },
  create_guest_memfd: { size: 'hex', flags: 'int' },
  set_attributes: { gpa: 'hex', size: 'hex', attributes: 'hex', flags: 'int' },
  fallocate: { gmem: 'int', mode_raw: 'int', off: 'hex', len: 'hex' },
  close_gmem: { gmem: 'int' },
  enter_smm: {},
  leave_smm: {},
  page_idle_set: { hva: 'hex', pages: 'int' },
  page_idle_read: { hva: 'hex', pages: 'int' },
  khugepaged_run: {},
  ksm_run: {},
  sleep: {},
  start_spinning_vcpu1: {},
  stop_vcpu1: {},
};

/** Operations that can be long loops, and the largest argument a replay accepts for them. */
const COUNT_LIMITS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  guest_access: { count: 1 << 20 },
  page_idle_set: { pages: 1 << 24 },
  page_idle_read: { pages: 1 << 24 },
};

/** Lists the recordings at `paths`: each file as it is, each folder's `.jsonl` and `.jsonl.gz` files by name. */
export function listRecordings(paths: readonly string[]): string[] {
  const files: string[] = [];
  for (const path of paths) {
    let isFolder: boolean;
    try {
      isFolder = statSync(path).isDirectory();
    } catch (error) {
      throw new InputError(path, 1, 1, `cannot be read (${(error as NodeJS.ErrnoException).code ?? 'error'})`);
    }
    if (!isFolder) {
      files.push(path);
      continue;
    }
    const found = readdirSync(path)
      .filter((name) => /\.jsonl(\.gz)?$/.test(name))
      .sort()
      .map((name) => join(path, name));
    if (found.length === 0) throw new InputError(path, 1, 1, 'holds no .jsonl file');
    files.push(...found);
  }
  return files;
}

interface Line {
  readonly number: number;
  readonly text: string;
}

/** Yields the lines of a file, without the line ends; a last line may lack its end. */
function* readLines(file: string, limits: ReadLimits): Generator<Line> {
  let number = 0;
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  const tooLong = () =>
    new InputError(file, number + 1, limits.lineLength + 1, `line longer than ${limits.lineLength}`);
  for (const chunk of readChunks(file, limits)) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      pending.push(chunk.subarray(from, end));
      pendingBytes += end - from;
      if (pendingBytes > limits.lineLength) throw tooLong();
      number++;
      yield { number, text: (pending.length === 1 ? pending[0] : Buffer.concat(pending)).toString('utf8') };
      pending = [];
      pendingBytes = 0;
      from = end + 1;
    }
    if (from < chunk.length) {
      pending.push(Buffer.from(chunk.subarray(from)));
      pendingBytes += chunk.length - from;
      if (pendingBytes > limits.lineLength) throw tooLong();
    }
  }
  if (pendingBytes > 0) yield { number: number + 1, text: Buffer.concat(pending).toString('utf8') };
}

function* readChunks(file: string, limits: ReadLimits): Generator<Buffer> {
  let handle: number;
  try {
    handle = openSync(file, 'r');
  } catch (error) {
    throw new InputError(file, 1, 1, `cannot be read (${(error as NodeJS.ErrnoException).code ?? 'error'})`);
  }
  try {
    const tooLarge = () => new InputError(file, 1, 1, `larger than ${limits.fileBytes} bytes`);
    const stat = fstatSync(handle);
    if (!stat.isFile()) throw new InputError(file, 1, 1, 'is no file');
    if (stat.size > limits.fileBytes) throw tooLarge();
    if (file.endsWith('.gz')) {
      try {
        yield gunzipSync(readFileSync(handle), { maxOutputLength: limits.fileBytes });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge();
        throw new InputError(file, 1, 1, `cannot be decompressed (${(error as Error).message})`);
      }
      return;
    }
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    for (let total = 0; ; ) {
      const bytes = readSync(handle, chunk, 0, CHUNK_BYTES, null);
      if (bytes === 0) return;
      total += bytes;
      if (total > limits.fileBytes) throw tooLarge();
      yield chunk.subarray(0, bytes);
    }
  } finally {
    closeSync(handle);
  }
}

function parseLine(file: string, line: Line): unknown {
  try {
    return JSON.parse(line.text) as unknown;
  } catch {
    const column = jsonColumn(line.text, ['\0']);
    const cut = column > line.text.length ? 'the line ends inside a value (truncated?)' : 'not JSON';
    throw new InputError(file, line.number, column, cut);
  }
}

/** Runs a check of one line; a fault gets its file, line and column. */
function checked<T>(file: string, line: Line, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (!(error instanceof Invalid)) throw error;
    throw new InputError(file, line.number, jsonColumn(line.text, error.path), error.message);
  }
}

function asObject(value: unknown, path: JsonPath): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Invalid(path, 'expected an object');
  return value as Record<string, unknown>;
}

function asArray(value: unknown, path: JsonPath): readonly unknown[] {
  if (!Array.isArray(value)) throw new Invalid(path, 'expected an array');
  return value;
}

function asInteger(value: unknown, path: JsonPath, least = Number.MIN_SAFE_INTEGER, most = Number.MAX_SAFE_INTEGER) {
  if (!Number.isSafeInteger(value)) throw new Invalid(path, 'expected an integer below 2^53');
  const integer = value as number;
  if (integer < least || integer > most) throw new Invalid(path, `expected an integer of ${least} to ${most}`);
  return integer;
}

/** A whole number as the format writes it: an integer, or from 2^53 on a string `0x…`. */
function isWhole(value: unknown): boolean {
  return Number.isSafeInteger(value) || (typeof value === 'string' && /^0x[0-9a-f]{1,16}$/.test(value));
}

function asText(value: unknown, path: JsonPath): string {
  if (typeof value !== 'string') throw new Invalid(path, 'expected a string');
  return value;
}

function asHex(value: unknown, path: JsonPath): string {
  if (typeof value !== 'string' || !/^[0-9a-f]{1,16}$/.test(value)) {
    throw new Invalid(path, 'expected a string of 1 to 16 hexadecimal digits');
  }
  return value;
}

function checkChange(value: unknown, path: JsonPath): number {
  const change = asArray(value, path);
  if (change.length !== 5 && change.length !== 9) throw new Invalid(path, 'expected 5 or 9 values');
  asInteger(change[0], [...path, 0], 0, 7);
  const gfn = asInteger(change[1], [...path, 1], 0, GFN_MAX - 1);
  asInteger(change[2], [...path, 2], 1, 5);
  asHex(change[3], [...path, 3]);
  asHex(change[4], [...path, 4]);
  if (change.length === 5) return 1;
  const count = asInteger(change[5], [...path, 5], 1);
  const gfnStep = asInteger(change[6], [...path, 6], -GFN_MAX, GFN_MAX);
  const lastGfn = gfn + (count - 1) * gfnStep;
  if (!(lastGfn >= 0 && lastGfn < GFN_MAX)) throw new Invalid([...path, 5], 'the run leaves the gfns below 2^52');
  for (const k of [7, 8]) if (!isWhole(change[k])) throw new Invalid([...path, k], 'expected an integer or "0x…"');
  return count;
}

function checkPlainEvent(value: unknown, path: JsonPath): readonly unknown[] {
  const event = asArray(value, path);
  asInteger(event[0], [...path, 0], 0);
  if (asText(event[1], [...path, 1]) === 'rep') throw new Invalid([...path, 1], 'a repetition inside a repetition');
  for (let k = 2; k < event.length; k++) {
    if (typeof event[k] !== 'string' && !Number.isSafeInteger(event[k])) {
      throw new Invalid([...path, k], 'expected an integer or a string');
    }
  }
  return event;
}

function checkEvent(value: unknown, path: JsonPath): number {
  const event = asArray(value, path);
  if (event[1] !== 'rep') {
    checkPlainEvent(value, path);
    return 1;
  }
  asInteger(event[0], [...path, 0], 0);
  const count = asInteger(event[2], [...path, 2], 1);
  const events = asArray(event[3], [...path, 3]);
  const steps = asArray(event[4], [...path, 4]);
  if (events.length === 0 || steps.length !== events.length) {
    throw new Invalid([...path, 4], 'expected one step list for each repeated event');
  }
  events.forEach((inner, k) => {
    const repeated = checkPlainEvent(inner, [...path, 3, k]);
    const step = asArray(steps[k], [...path, 4, k]);
    if (step.length !== repeated.length) throw new Invalid([...path, 4, k], 'expected one step for each field');
    step.forEach((s, j) => {
      if (!isWhole(s)) throw new Invalid([...path, 4, k, j], 'expected an integer or "0x…"');
    });
  });
  return count * events.length;
}

function checkList(
  value: unknown,
  path: JsonPath,
  limit: number,
  what: string,
  count: (item: unknown, path: JsonPath) => number,
): number {
  let total = 0;
  asArray(value, path).forEach((item, k) => {
    total += count(item, [...path, k]);
    if (total > limit) throw new Invalid([...path, k], `more than ${limit} ${what} in one operation`);
  });
  return total;
}

function checkLeafs(value: unknown, path: JsonPath): number {
  const run = asArray(value, path);
  if (run.length !== 5) throw new Invalid(path, 'expected 5 values');
  asInteger(run[0], [...path, 0], 0, 7);
  asInteger(run[1], [...path, 1], 1, 3);
  asInteger(run[2], [...path, 2], 0, GFN_MAX - 1);
  asHex(run[4], [...path, 4]);
  return asInteger(run[3], [...path, 3], 1);
}

function checkExit(value: unknown, path: JsonPath): number {
  const exit = asArray(value, path);
  asText(exit[0], [...path, 0]);
  for (let k = 1; k < exit.length; k++) {
    if (typeof exit[k] !== 'string' && !Number.isSafeInteger(exit[k])) {
      throw new Invalid([...path, k], 'expected an integer or a string');
    }
  }
  return 1;
}

function toOperation(value: unknown, line: Line, i: number, limits: ReadLimits): RecordedOperation {
  const raw = asObject(value, []);
  if (asInteger(raw.i, ['i']) !== i) throw new Invalid(['i'], `expected operation ${i}`);
  const op = asText(raw.op, ['op']);
  const kinds = Object.hasOwn(OPERATIONS, op) ? OPERATIONS[op] : undefined;
  if (kinds === undefined) throw new Invalid(['op'], `unknown operation '${op}'`);
  for (const [name, kind] of Object.entries(kinds)) {
    if (raw[name] === undefined) throw new Invalid([], `${op} lacks its argument '${name}'`);
    if (kind === 'hex') asHex(raw[name], [name]);
    else if (kind === 'int') asInteger(raw[name], [name]);
    else asText(raw[name], [name]);
  }
  for (const [name, limit] of Object.entries(COUNT_LIMITS[op] ?? {})) asInteger(raw[name], [name], 0, limit);
  if (raw.ret === undefined) throw new Invalid([], "lacks 'ret'");
  if (raw.errno !== undefined) asText(raw.errno, ['errno']);
  if (raw.exits !== undefined) checkList(raw.exits, ['exits'], limits.eventsPerOperation, 'exits', checkExit);
  if (raw.dirty !== undefined) {
    checkList(raw.dirty, ['dirty'], limits.eventsPerOperation, 'dirty runs', (item, path) => {
      const run = asArray(item, path);
      asInteger(run[0], [...path, 0], 0);
      asInteger(run[1], [...path, 1], 1);
      return 1;
    });
  }
  if (raw.spte_changes === undefined) throw new Invalid([], "lacks 'spte_changes'");
  if (raw.other_events === undefined) throw new Invalid([], "lacks 'other_events'");
  const changeCount = checkList(
    raw.spte_changes,
    ['spte_changes'],
    limits.changesPerOperation,
    'SPTE changes',
    checkChange,
  );
  checkList(raw.other_events, ['other_events'], limits.eventsPerOperation, 'events', checkEvent);
  const stats = raw.stats === undefined ? {} : asObject(raw.stats, ['stats']);
  for (const name of Object.keys(stats)) asInteger(stats[name], ['stats', name]);
  if (raw.leafs !== undefined) {
    const leafs = asArray(raw.leafs, ['leafs']);
    if (leafs.length !== 3) throw new Invalid(['leafs'], 'expected three counts');
    leafs.forEach((count, k) => {
      asInteger(count, ['leafs', k], 0);
    });
  }
  if (raw.tables !== undefined) asInteger(raw.tables, ['tables'], 0);
  if (raw.h !== undefined && !/^[0-9a-f]{8}$/.test(asText(raw.h, ['h']))) {
    throw new Invalid(['h'], 'expected 8 hexadecimal digits');
  }
  if (raw.state !== undefined) checkList(raw.state, ['state'], limits.changesPerOperation, 'leafs', checkLeafs);
  return {
    i,
    op,
    line: line.number,
    args: raw as Record<string, RawField>,
    ret: asInteger(raw.ret, ['ret']),
    errno: raw.errno as string | undefined,
    exits: raw.exits as RawExit[] | undefined,
    leftGpa: raw.left_gpa === undefined ? undefined : BigInt(`0x${asHex(raw.left_gpa, ['left_gpa'])}`),
    leftSize: raw.left_size === undefined ? undefined : BigInt(`0x${asHex(raw.left_size, ['left_size'])}`),
    dirty: raw.dirty as [number, number][] | undefined,
    changes: raw.spte_changes as RawChange[],
    events: raw.other_events as RawEvent[],
    stats: stats as Record<string, number>,
    leafs: raw.leafs as [number, number, number] | undefined,
    tables: raw.tables as number | undefined,
    h: raw.h as string | undefined,
    state: raw.state as RawLeafs[] | undefined,
    changeCount,
  };
}

function parameter(parameters: Record<string, unknown>, name: string): boolean {
  const value = asText(parameters[name], ['kvm_params', name]);
  if (['Y', '1', 'force'].includes(value)) return true;
  if (['N', '0', 'off', 'auto', 'never'].includes(value)) return false;
  throw new Invalid(['kvm_params', name], `unknown value '${value}'`);
}

function toHeader(file: string, value: unknown): Omit<Recording, 'operations'> {
  const raw = asObject(value, []);
  if (raw.format !== 'gt1') throw new Invalid(['format'], 'no recording: expected a header with "format":"gt1"');
  const parameters = asObject(raw.kvm_params, ['kvm_params']);
  return {
    file,
    scenario: asText(raw.scenario, ['scenario']),
    maxphyaddr: asInteger(raw.maxphyaddr, ['maxphyaddr'], 32, 52),
    nxHugePages: parameter(parameters, 'nx_huge_pages'),
    eagerPageSplit: parameter(parameters, 'eager_page_split'),
    mmioCaching: parameter(parameters, 'mmio_caching'),
    nops: asInteger(raw.nops, ['nops'], 0),
  };
}

function toVector(value: unknown, line: Line): GfnRangeVector {
  const raw = asObject(value, []);
  const fn = asText(raw.fn, ['fn']);
  if (fn !== 'unmap_gfn_range' && fn !== 'age_gfn' && fn !== 'test_age_gfn') {
    throw new Invalid(['fn'], `unknown call '${fn}'`);
  }
  const start = asInteger(raw.start, ['start'], 0, GFN_MAX);
  const end = asInteger(raw.end, ['end'], start, GFN_MAX);
  const pagesOf = (level: number) => 512 ** (level - 1);
  const runs = (name: 'before' | 'changed', length: number) => {
    asArray(raw[name], [name]).forEach((item, k) => {
      const run = asArray(item, [name, k]);
      if (run.length !== length) throw new Invalid([name, k], `expected ${length} values`);
      const level = asInteger(run[0], [name, k, 0], 1, 3);
      const gfn = asInteger(run[1], [name, k, 1], 0, GFN_MAX);
      const count = asInteger(run[2], [name, k, 2], 1, READ_LIMITS.changesPerOperation);
      if (gfn + count * pagesOf(level) > GFN_MAX) throw new Invalid([name, k], 'the run leaves the gfns below 2^52');
      if (length === 4) asHex(run[3], [name, k, 3]);
    });
    return raw[name];
  };
  return {
    line: line.number,
    fn,
    vmType: asInteger(raw.vm_type, ['vm_type'], 0, 1),
    slot: asInteger(raw.slot, ['slot'], 0, 32767),
    asId: asInteger(raw.as_id, ['as_id'], 0, 1),
    start,
    end,
    arg: asInteger(raw.arg, ['arg']),
    attrFilter: asInteger(raw.attr_filter, ['attr_filter'], 0, 3),
    mayBlock: asInteger(raw.may_block, ['may_block'], 0, 1),
    before: runs('before', 4) as [number, number, number, string][],
    changed: runs('changed', 3) as [number, number, number][],
    ret: asInteger(raw.ret, ['ret'], 0, 1),
    src: asText(raw.src, ['src']),
  };
}

/**
 * Reads one file: a recording, or a file of unit vectors.
 * @throws {InputError} if it is neither, is truncated, malformed or beyond a limit
 */
export function readFile(file: string, limits: ReadLimits = READ_LIMITS): Recording | VectorFile {
  let header: Omit<Recording, 'operations'> | undefined;
  const operations: RecordedOperation[] = [];
  const vectors: GfnRangeVector[] = [];
  let changes = 0;
  let last: Line = { number: 1, text: '' };
  for (const line of readLines(file, limits)) {
    const value = parseLine(file, line);
    checked(file, line, () => {
      if (line.number === 1 && typeof value === 'object' && value !== null && !('fn' in value)) {
        header = toHeader(file, value);
      } else if (header === undefined) {
        vectors.push(toVector(value, line));
      } else {
        if (operations.length === header.nops)
          throw new Invalid([], `more than the ${header.nops} operations of the header`);
        const operation = toOperation(value, line, operations.length, limits);
        changes += operation.changeCount;
        if (changes > limits.changesPerFile) {
          throw new Invalid(['spte_changes'], `more than ${limits.changesPerFile} SPTE changes in one file`);
        }
        operations.push(operation);
      }
    });
    last = line;
  }
  if (header !== undefined) {
    if (operations.length < header.nops) {
      const message = `truncated: ${operations.length} of the ${header.nops} operations of the header`;
      throw new InputError(file, last.number, last.text.length + 1, message);
    }
    return { ...header, operations };
  }
  if (vectors.length === 0) throw new InputError(file, 1, 1, 'is empty');
  return { file, vectors };
}
