// Writes the generated parts of docs/memory-map.md: the regions of assembly/layout.ts with their sizes, and the whole
// memory of one small VM as a dump. The bytes are those of a snapshot; what each is called is read from assembly/.
// Usage: node scripts/run.mjs memory-map [--check]     (after a build)

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { transformSync } from 'esbuild';
import { COUNTER_NAMES } from '../src/engine/exports.ts';

const path = 'docs/memory-map.md';

const built = (file: string) => pathToFileURL(join(process.cwd(), 'dist', file)).href;

const sourceOf = (file: string) => readFileSync(`assembly/${file}`, 'utf8');

/** assembly/layout.ts holds constants alone: without its types it is JavaScript. */
const layout = (await import(
  `data:text/javascript,${encodeURIComponent(transformSync(sourceOf('layout.ts'), { loader: 'ts' }).code)}`
)) as Record<string, number>;

// --- Names -------------------------------------------------------------------------------------------------------

interface Field {
  name: string;
  offset: number;
  bytes: number;
}

/** The fields of an @unmanaged class, each at its natural alignment. */
function fieldsOf(file: string, className: string): Field[] {
  const body = new RegExp(`class ${className} \\{\\n([\\s\\S]*?)\\n\\}`).exec(sourceOf(file))?.[1];
  if (body === undefined) throw new Error(`assembly/${file} has no class ${className}`);
  let offset = 0;
  return [...body.matchAll(/^ {2}(\w+): [uif](8|16|32|64);/gm)].map(([, name, bits]) => {
    const bytes = Number(bits) / 8;
    offset = Math.ceil(offset / bytes) * bytes;
    offset += bytes;
    return { name: name!, offset: offset - bytes, bytes };
  });
}

const eventNames = new Map(
  [...sourceOf('trace.ts').matchAll(/^export const EV_(\w+): u32 = (\d+);/gm)].map(([, name, value]) => [
    Number(value),
    `EV_${name}`,
  ]),
);

const TAGS = ['EMPTY', 'LEAF', 'TABLE', 'LT', 'UNIFORM', 'CHUNKS'];
const SPTE_BITS = ['P', 'W', 'A', 'D', 'H', 'M', 'NX', 'K'];
const HOST_BITS = ['present', 'writable', 'lazyfree', 'own', 'folio', 'ksm', 'unmapped', '?'];
const GMEM_BITS = ['resident', 'written', 'pinned', 'touched', 'poisoned', 'owned', 'folio', 'mapped'];
const RMP_BITS = ['assigned', '2M', 'o0', 'validated', 'o1', 'o2', 'o3', 'o4'];
const SET_BITS = ['set', '?', '?', '?', '?', '?', '?', '?'];

// --- The small VM ------------------------------------------------------------------------------------------------

/** The VM that the page's example makes. */
const example = /^```js\n([\s\S]*?)^```/m.exec(readFileSync(path, 'utf8'))?.[1];
if (example === undefined) throw new Error(`${path} has no example`);
const program = join(process.cwd(), 'build', 'scripts', 'memory-map-example.mjs');
writeFileSync(program, `${example.replace("'eptsim'", JSON.stringify(built('index.js')))}\nexport { vm };\n`);
const { vm } = (await import(pathToFileURL(program).href)) as { vm: import('../src/index.ts').Vm };

const snapshot = vm.snapshot();
const header = new Uint32Array(snapshot.buffer, 0, snapshot.byteLength >>> 2);
const HEADER_WORDS = 8;

/** Used prefixes of the regions, in order: where each stands in memory and in the snapshot. */
const used: { start: number; bytes: number; at: number }[] = [];
{
  const count = header[4]!;
  let at = (HEADER_WORDS + count * 2) * 4;
  for (let index = 0; index < count; index++) {
    const start = header[HEADER_WORDS + index * 2]!;
    const bytes = header[HEADER_WORDS + index * 2 + 1]!;
    used.push({ start, bytes, at });
    at += bytes;
  }
}
const view = new DataView(snapshot.buffer);
function place(address: number): number {
  const region = used.find(({ start, bytes }) => address >= start && address < start + bytes);
  if (region === undefined) throw new Error(`0x${address.toString(16)} is in no used region`);
  return region.at + (address - region.start);
}
const u32 = (address: number) => view.getUint32(place(address), true);
const u64 = (address: number) => view.getBigUint64(place(address), true);
function fieldValue(address: number, bytes: number): bigint {
  if (bytes === 8) return u64(address);
  if (bytes === 4) return BigInt(u32(address));
  return BigInt(bytes === 2 ? view.getUint16(place(address), true) : view.getUint8(place(address)));
}

// --- Labels: what each line of 16 bytes is -------------------------------------------------------------------------

const labels = new Map<number, string>();
function label(address: number, text: string): void {
  const line = address - (address % 16);
  const before = labels.get(line);
  labels.set(line, before === undefined ? text : `${before}  ${text}`);
}

const DOUBLES = new Set(['budget', 'yieldGfn', 'pauseGfn', 'result0', 'result1', 'result2', 'result3']);
function shown(name: string, value: bigint, bytes: number): string {
  if (DOUBLES.has(name)) {
    const double = new DataView(new ArrayBuffer(8));
    double.setBigUint64(0, value);
    return String(double.getFloat64(0));
  }
  if (bytes === 8 && value === 2n ** 64n - 1n) return 'INVALID';
  return value > 4095n ? `0x${value.toString(16)}` : String(value);
}

/** Labels the fields of a record that are not zero. Fields named …Lo, …Hi are a tree's entry. */
function labelRecord(base: number, fields: Field[]): void {
  for (const { name, offset, bytes } of fields) {
    if (/(Lo|Hi)$/.test(name)) continue;
    const value = fieldValue(base + offset, bytes);
    if (value !== 0n) label(base + offset, `${name}=${shown(name, value, bytes)}`);
  }
}

const arenaBase = u32(
  layout.CONTROL_BASE! + fieldsOf('control.ts', 'Control').find((f) => f.name === 'arenaBase')!.offset,
);
const blockAddress = (block: number) => arenaBase + block * 64;
const flagsText = (flags: number, bits: string[]) =>
  flags === 0 ? '-' : bits.filter((_, bit) => (flags >> bit) & 1).join(' ');

const bitsIn = (mask: number) => mask.toString(2).replaceAll('0', '').length;

function entryText(address: number, bits: string[]): string {
  const descriptor = u32(address);
  const counts = u32(address + 8);
  const tag = TAGS[descriptor & 7]!;
  const flags = (descriptor >>> 8) & 255;
  const planes = (descriptor >>> 16) & 255;
  if (tag === 'TABLE') return `TABLE block ${u32(address + 4)}`;
  if (tag === 'UNIFORM') return `UNIFORM leaf level ${(descriptor >>> 3) & 15}, ${flagsText(flags, bits)}`;
  if (tag === 'LEAF') return `LEAF ${flagsText(flags, bits)}`;
  if (tag === 'CHUNKS') return `CHUNKS block ${u32(address + 4)}, ${counts & 1023} full: ${flagsText(flags, bits)}`;
  if (tag !== 'LT') return tag;
  const sums = [`present ${counts & 1023}`];
  if (bits === SPTE_BITS) sums.push(`accessed ${(counts >>> 10) & 1023}`);
  if ((counts >>> 20) & 1023) sums.push(`side ${(counts >>> 20) & 1023}`);
  const blocks = [`block ${u32(address + 4)}`];
  if (bitsIn(descriptor >>> 24) > 4) blocks.push(`block2 ${u32(address + 12)}`);
  const where = planes === 0 ? 'no planes' : `planes ${flagsText(planes, bits)} at ${blocks.join(', ')}`;
  return `LT flags ${flagsText(flags & ~planes, bits)}; ${where}; ${sums.join(', ')}`;
}

/** Labels a tree from its entry down: every table's entries, every plane. */
function labelTree(owner: string, address: number, level: number, bits: string[]): void {
  if (u64(address) === 0n && u64(address + 8) === 0n) return;
  const descriptor = u32(address);
  label(address, `${owner} ${entryText(address, bits)}`);
  // The planes of a table are labelled with its tree's name.
  const tree = owner.replace(/ L\d.*/, '');
  if ((descriptor & 7) === 2) {
    const table = blockAddress(u32(address + 4));
    for (let index = 0; index < 512; index++) {
      labelTree(`${tree} L${level - 1}[${index}]`, table + index * 16, level - 1, bits);
    }
  } else if ((descriptor & 7) === 3 && descriptor >>> 24 !== 0) {
    labelPlanes(address, tree, bits);
  } else if ((descriptor & 7) === 5) {
    labelPlane(blockAddress(u32(address + 4)), `${tree} full or empty, leaf tables`);
  }
}

/** Labels the blocks of a leaf table, as assembly/leaf_table.ts places planes in them. */
function labelPlanes(address: number, tree: string, bits: string[]): void {
  const allocated = u32(address) >>> 24;
  const [block, block2] = [u32(address + 4), u32(address + 12)];
  if (bitsIn(allocated) === 1) {
    labelPlane(blockAddress(block), `${tree} plane ${flagsText(allocated, bits)}, keys`);
    return;
  }
  const isShared = bitsIn(allocated) <= 4;
  const names = new Map<number, string[]>();
  for (let bit = 0; bit < 8; bit++) {
    if (((allocated >> bit) & 1) === 0) continue;
    const isGuest = bit > 3 && isShared;
    const place = isGuest ? (block2 >>> ((bit & 3) * 2)) & 3 : bit & 3;
    const pair = blockAddress(bit > 3 && !isShared ? block2 : block) + (place & 1) * 128;
    names.set(pair, [...(names.get(pair) ?? []), bits[bit]!]);
  }
  for (const [pair, planes] of names) {
    for (let word = 0; word < 8; word++) {
      label(pair + word * 16, `${tree} planes ${planes.join(' ')}, keys ${word * 64} to ${word * 64 + 63}`);
    }
  }
}

/** Labels a plane that has a block of its own. */
function labelPlane(block: number, what: string): void {
  for (let line = 0; line < 4; line++) label(block + line * 16, `${what} ${line * 128} to ${line * 128 + 127}`);
}

const control = fieldsOf('control.ts', 'Control');
const controlAt = (name: string) => layout.CONTROL_BASE! + control.find((field) => field.name === name)!.offset;
labelRecord(layout.CONTROL_BASE!, control);
for (const [index, name] of COUNTER_NAMES.entries()) {
  const address = layout.CONTROL_BASE! + 1024 + index * 8;
  if (u64(address) !== 0n) label(address, `${name}=${u64(address)}`);
}
labelTree('attributes', controlAt('attributesLo'), 7, SET_BITS);
labelTree('attributes2M', controlAt('attributes2mLo'), 6, SET_BITS);
labelTree('host', controlAt('hostLo'), 6, HOST_BITS);
labelTree('stale', controlAt('staleLo'), 7, SET_BITS);

labelRecord(layout.MEMSLOTS_BASE!, fieldsOf('memslots.ts', 'Memslot'));
for (const [owner, field, level] of [
  ['dirty', 'dirtyLo', 5],
  ['mixed2M', 'mixed2mLo', 6],
  ['mixed1G', 'mixed1gLo', 5],
] as const) {
  const offset = fieldsOf('memslots.ts', 'Memslot').find((one) => one.name === field)!.offset;
  labelTree(owner, layout.MEMSLOTS_BASE! + offset, level, SET_BITS);
}
label(layout.SLOT_ORDER_BASE!, 'order by gfn: slot 0');
label(layout.SLOT_ORDER_BASE! + 131072, 'order by hva: slot 0');
const roots = fieldsOf('tdp_mmu.ts', 'Root');
for (let index = 0; index < u32(controlAt('rootHighWater')); index++) {
  const base = layout.ROOTS_BASE! + index * layout.ROOT_BYTES!;
  const kind = u32(base + roots.find((field) => field.name === 'kind')!.offset) === 1 ? 'mirror' : 'direct';
  labelTree(kind, base, u32(controlAt('rootLevel')) + 1, SPTE_BITS);
  labelRecord(base, roots);
}
labelRecord(layout.VCPUS_BASE!, fieldsOf('vcpus.ts', 'Vcpu'));
const gmem = fieldsOf('gmems.ts', 'Gmem');
labelRecord(layout.GMEM_BASE!, gmem);
labelTree('rmp', layout.GMEM_BASE! + gmem.find((field) => field.name === 'rmpLo')!.offset, 7, RMP_BITS);
labelTree('file', layout.GMEM_BASE! + gmem.find((field) => field.name === 'pagesLo')!.offset, 7, GMEM_BITS);
labelRecord(layout.VMAS_BASE!, fieldsOf('host_vma.ts', 'Vma'));
for (let index = 0; index < layout.SIDE_CAPACITY!; index++) {
  const address = layout.SIDE_BASE! + index * layout.SIDE_BYTES!;
  const key = u64(address);
  if (key === 0n) continue;
  const code = u32(address + 8);
  const what = (code & 7) === 1 ? `MMIO generation ${code >> 3}` : 'FROZEN';
  label(address, `root ${(key - 1n) >> 48n}, key 0x${((key - 1n) & (2n ** 48n - 1n)).toString(16)}: ${what}`);
}
for (let record = 0; record < u32(controlAt('traceCount')); record++) {
  const address = layout.RING_BASE! + record * 16;
  const head = u32(address);
  label(address, eventNames.get(head & 255)!);
  const more = (head & 255) === 1 ? 0 : (head >>> 8) & 255;
  for (let extra = 1; extra <= more; extra++) label(address + extra * 16, '  its quads');
  record += more;
}

// Free blocks: what is left in them means nothing.
const FREE_STACKS = 19;
for (let sizeClass = 0; sizeClass < layout.CLASS_COUNT!; sizeClass++) {
  const stack = used[FREE_STACKS + sizeClass]!;
  const blocks = [1, layout.QUAD_BLOCKS!, layout.UPPER_BLOCKS!][sizeClass]!;
  for (let offset = 0; offset < stack.bytes; offset += 4) {
    const block = u32(stack.start + offset);
    label(stack.start + offset, `block ${block}`);
    for (let line = 0; line < blocks * 4; line++) {
      labels.set(blockAddress(block) + line * 16, '(free)');
    }
  }
}

// --- The generated parts -------------------------------------------------------------------------------------------

const hexOf = (value: number) => `0x${value.toString(16).padStart(8, '0')}`;
function size(bytes: number): string {
  if (bytes % 524288 === 0 && bytes > 524288) return `${bytes / 1048576} MiB`;
  if (bytes % 1024 === 0) return `${bytes / 1024} KiB`;
  return `${bytes.toLocaleString('en-US')} B`;
}

function regionTable(): string {
  const rows: [name: string, start: string, bytes: number, what: string][] = [
    ['SCRATCH', '', layout.CONTROL_BASE!, 'of single functions'],
    ['CONTROL', 'CONTROL_BASE', layout.CONTROL_BYTES!, 'scalars (1 KiB), then the counters, 8 bytes each'],
    ['TEXTS', 'TEXTS_BASE', layout.TEXTS_BYTES!, "of the debug build's assertions"],
    ['PAUSE', 'PAUSE_BASE', layout.PAUSE_BYTES!, 'the stack of a paused operation'],
    ['IO', 'IO_BASE', layout.IO_BYTES!, 'results that do not fit registers'],
    ['BITMAP', 'BITMAP_BASE', layout.BITMAP_BYTES!, 'the argument of KVM_CLEAR_DIRTY_LOG'],
    [
      'MEMSLOTS',
      'MEMSLOTS_BASE',
      layout.MEMSLOTS_MAX! * layout.MEMSLOT_BYTES!,
      `${layout.MEMSLOTS_MAX!.toLocaleString('en-US')} records of ${layout.MEMSLOT_BYTES}: two address spaces of 32,768 ids`,
    ],
    ['SLOT_ORDER', 'SLOT_ORDER_BASE', layout.SLOT_ORDER_BYTES!, 'ids by gfn and by hva, for each address space'],
    [
      'ROOTS',
      'ROOTS_BASE',
      layout.ROOTS_MAX! * layout.ROOT_BYTES!,
      `${layout.ROOTS_MAX!.toLocaleString('en-US')} records of ${layout.ROOT_BYTES}`,
    ],
    [
      'VCPUS',
      'VCPUS_BASE',
      layout.VCPUS_MAX! * layout.VCPU_BYTES!,
      `${layout.VCPUS_MAX!.toLocaleString('en-US')} records of ${layout.VCPU_BYTES}`,
    ],
    [
      'FAULTS',
      'FAULTS_BASE',
      layout.FAULTS_MAX! * layout.FAULT_BYTES!,
      `${layout.FAULTS_MAX!.toLocaleString('en-US')} records of ${layout.FAULT_BYTES}`,
    ],
    [
      'GMEM',
      'GMEM_BASE',
      layout.GMEMS_MAX! * layout.GMEM_BYTES!,
      `${layout.GMEMS_MAX!.toLocaleString('en-US')} records of ${layout.GMEM_BYTES}`,
    ],
    [
      'ORIGINS',
      'RMP_ORIGINS_BASE',
      layout.GMEMS_MAX! * layout.RMP_ORIGINS_BYTES!,
      `of a guest_memfd's RMP entries: ${layout.RMP_ORIGINS_MAX} of 16 for each file`,
    ],
    [
      'PSC',
      'PSC_BASE',
      layout.VCPUS_MAX! * layout.PSC_BYTES!,
      `${layout.VCPUS_MAX!.toLocaleString('en-US')} records of ${layout.PSC_BYTES!.toLocaleString('en-US')}: page-state changes in flight`,
    ],
    [
      'VMAS',
      'VMAS_BASE',
      layout.VMAS_MAX! * layout.VMA_BYTES!,
      `${layout.VMAS_MAX!.toLocaleString('en-US')} records of ${layout.VMA_BYTES}`,
    ],
    [
      'SIDE',
      'SIDE_BASE',
      layout.SIDE_CAPACITY! * layout.SIDE_BYTES!,
      `${layout.SIDE_CAPACITY!.toLocaleString('en-US')} records of ${layout.SIDE_BYTES}, a hash table`,
    ],
    [
      'LOSSES',
      'LOSSES_BASE',
      layout.LOSSES_MAX! * layout.LOSS_BYTES!,
      `${layout.LOSSES_MAX!.toLocaleString('en-US')} records of ${layout.LOSS_BYTES}`,
    ],
  ];
  const listed = new Set(rows.map(([, start]) => start));
  const missing = Object.keys(layout).filter(
    (name) => /_BASE$/.test(name) && name !== 'RING_BASE' && !listed.has(name),
  );
  if (missing.length > 0)
    throw new Error(`assembly/layout.ts has ${missing.join(', ')}: add it to the table of regions`);
  const lines = rows.map(
    ([name, start, bytes, what]) =>
      `${hexOf(start === '' ? 0 : layout[start]!)}  ${name.padEnd(10)}  ${size(bytes).padStart(8)}  ${what}`,
  );
  lines.push(
    `${hexOf(layout.RING_BASE!)}  ${'RING'.padEnd(10)}  ${'chosen'.padStart(8)}  trace records of ${layout.TRACE_RECORD_BYTES}, at most traceRecords of them`,
  );
  lines.push(
    `${'…'.padEnd(10)}  ${'STACKS'.padEnd(10)}  ${'1/14'.padStart(8)}  free blocks, one stack for each of ${layout.CLASS_COUNT} sizes (of what the ring leaves)`,
  );
  lines.push(`${'…'.padEnd(10)}  ${'ARENA'.padEnd(10)}  ${'13/14'.padStart(8)}  tables and planes, in blocks of 64`);
  return ['```text', 'address     region          bytes  what', ...lines, '```'].join('\n');
}

const REGION_NAMES = [
  'CONTROL, 7 KiB',
  'PAUSE',
  'BITMAP',
  'MEMSLOTS',
  'SLOT_ORDER, address space 0, by gfn',
  'SLOT_ORDER, address space 0, by hva',
  'SLOT_ORDER, address space 1, by gfn',
  'SLOT_ORDER, address space 1, by hva',
  'ROOTS',
  'VCPUS',
  'FAULTS',
  'FAULTS, the one carried through at once',
  'GMEM',
  'RMP_ORIGINS',
  'PSC',
  'VMAS',
  'SIDE',
  'LOSSES',
  'RING',
  'STACK of blocks of 1',
  'STACK of blocks of 4',
  'STACK of blocks of 128',
  'ARENA',
];

function dump(): string {
  const lines: string[] = [];
  for (const [index, { start, bytes, at }] of used.entries()) {
    if (bytes === 0) continue;
    lines.push('', `${REGION_NAMES[index]}: ${bytes.toLocaleString('en-US')} bytes used`);
    for (let offset = 0; offset < bytes; offset += 16) {
      const line = snapshot.subarray(at + offset, at + Math.min(offset + 16, bytes));
      if (line.every((byte) => byte === 0) && bytes > 16) continue;
      const words: string[] = [];
      for (let word = 0; word < line.length; word += 4) {
        words.push([...line.subarray(word, word + 4)].map((byte) => byte.toString(16).padStart(2, '0')).join(''));
      }
      const address = start + offset;
      const unnamed = start === arenaBase ? '(a place not in use)' : '';
      lines.push(`${hexOf(address)}  ${words.join(' ').padEnd(35)}  ${labels.get(address) ?? unnamed}`.trimEnd());
    }
  }
  return [
    '```text',
    'address     16 bytes, lowest first              what is not zero in them',
    ...lines,
    '```',
    '',
    `The snapshot of this VM, which is what \`vm.memoryUsed\` counts, has ${snapshot.byteLength.toLocaleString('en-US')} bytes.`,
  ].join('\n');
}

const before = readFileSync(path, 'utf8');
let text = before;
for (const [name, part] of [
  ['regions', regionTable()],
  ['dump', dump()],
] as const) {
  const marks = new RegExp(`(<!-- ${name} -->\\n)[\\s\\S]*?(\\n<!-- /${name} -->)`);
  if (!marks.test(text)) throw new Error(`${path} has no part <!-- ${name} -->`);
  text = text.replace(marks, (_, open, close) => `${open}${part}${close}`);
}
if (process.argv.includes('--check')) {
  if (before !== text) {
    process.stderr.write(`${path} is stale: run npm run memory-map\n`);
    process.exitCode = 1;
  }
} else {
  writeFileSync(path, text);
  process.stderr.write(`wrote ${path}\n`);
}
