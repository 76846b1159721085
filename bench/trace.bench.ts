// How many trace records a second are emitted by the engine and read in JavaScript?
//
// A guest with every second page mapped is zapped in pieces, and each piece's records are read before the next: each page is
// a run of its own and makes one 16-byte record, and a ring that is read so can stay in the cache. JavaScript reads all four
// words of every record. The peers write the same records as they zap, and read them, in C. A uniform guest is the other end: one record stands for up to 2^32 entries.

import { api } from './peers/eptsim.ts';
import { Native, NativeProcess } from './peers/native.ts';
import { type BenchContext, type Goal, median, type Row, row, spreadOf } from './rows.ts';
import { GIB, PAGE } from './workloads.ts';

const HVA = 2 ** 40;
const SPTE_CHANGED = 1;
/** Pages zapped before their records are read. */
const PIECE = 65_536;

interface Found {
  /** Sum of the first gfns and of what the heads say of them, modulo 2^32: integers as the processor adds them. */
  gfns: number;
  changes: number;
}
function readRecords(words: Uint32Array, records: number): Found {
  let gfns = 0;
  let changes = 0;
  // `at` is the record's last word: V8 takes a fifth less time over it than over the first.
  for (let at = 3; at < records * 4; at += 4) {
    const head = words[at - 3];
    if ((head & 255) === SPTE_CHANGED) {
      gfns = (gfns + words[at - 1] + (words[at - 2] >>> 16)) | 0;
      changes = (changes + words[at]) | 0;
    } else {
      at += ((head >> 8) & 255) * 4;
    }
  }
  return { gfns, changes };
}

export default async function trace({ quick, native, say }: BenchContext): Promise<Row[]> {
  const bytes = (quick ? 1 : 8) * GIB;
  const pages = bytes / PAGE;
  const vm = api.createVmSync({ memory: bytes, traceRecords: PIECE });
  vm.host.mmap({ hva: HVA, length: bytes, kind: 'shmem' });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });
  const vcpu = vm.vcpus[0];
  // The ring is as large as the zap needs: what the faults emit beyond that is dropped, and counted.
  const exit = vcpu.access({ gpa: 0, kind: 'write', stride: 2 * PAGE, count: pages / 2 });
  if (exit.done !== pages / 2) throw new Error(`trace: ${exit.done} pages were touched`);
  vm.readTrace(() => undefined);
  const snapshot = vm.snapshot();

  const process = 'program' in native ? new NativeProcess(native.program) : undefined;
  if ('skipped' in native) say(native.skipped);
  const peers = process === undefined ? [] : [new Native(process, 'tdp_iter'), new Native(process, 'nested')];
  for (const peer of peers) await peer.build({ bytes, density: 'full', leaves: '4k' });
  const peerSamples = peers.map((): number[] => []);
  const check = (name: string, found: Found) => {
    if (found.changes === pages / 2 && found.gfns === (((pages / 2) * (pages / 2 - 1)) | 0)) return;
    throw new Error(`trace: ${found.changes} changes of ${name} were read`);
  };

  const samples: number[] = [];
  const emits: number[] = [];
  const rounds = quick ? 5 : 15;
  for (let round = -3; round < rounds; round++) {
    for (const [at, peer] of peers.entries()) {
      const found = await peer.trace(PIECE);
      check(peer.name, found);
      if (round >= 0) peerSamples[at].push(found.ns / found.changes);
    }
    vm.restore(snapshot);
    let gfns = 0;
    let changes = 0;
    let dropped = 0;
    let emitMs = 0;
    const start = performance.now();
    for (let gfn = 0; gfn < pages; gfn += PIECE) {
      const begun = performance.now();
      vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + PIECE });
      emitMs += performance.now() - begun;
      dropped += vm.traceDropped;
      const found = vm.readTrace(readRecords);
      gfns = (gfns + found.gfns) | 0;
      changes += found.changes;
    }
    const end = performance.now();
    check('eptsim', { gfns, changes });
    if (dropped !== 0) throw new Error(`trace: ${dropped} records were dropped`);
    if (round < 0) continue;
    samples.push(((end - start) * 1e6) / changes);
    emits.push((emitMs * 1e6) / changes);
  }
  process?.quit();
  const nsPerOperation = median(samples);
  const note = `${median(emits).toFixed(2)} ns to zap and emit, the rest to read; nothing dropped`;
  say(`trace: ${(1e3 / nsPerOperation).toFixed(0)} M records/s; ${note}`);
  const [iter, nested] = peerSamples.map(median);
  const taken = (contender: string, times: number[], goal: Goal | null, more: string): Row => {
    const ns = median(times);
    return row({
      question: 'trace',
      guestBytes: bytes,
      density: 'every second page',
      operation: 'zap-whole-traced',
      contender,
      planes: 1,
      operations: pages / 2,
      nsPerOperation: ns,
      ratioToNativeIter: iter === undefined ? null : iter / ns,
      ratioToNativeNested: nested === undefined ? null : nested / ns,
      perSecond: 1e9 / ns,
      spread: spreadOf(times),
      samples: times.length,
      goal,
      note: more,
    });
  };
  const rows = [
    ...peers.map(({ name }, at) => taken(name, peerSamples[at], null, 'the same records, emitted and read in C')),
    taken('eptsim', samples, '16-byte trace, emitted and read by JS', note),
  ];

  // Run-length: all pages alike.
  vm.restore(snapshot);
  vcpu.access({ gpa: 0, kind: 'write', size: bytes });
  vm.unmapGfnRange({ slot: 0, start: 0, end: pages });
  vcpu.access({ gpa: 0, kind: 'write', size: bytes });
  vm.readTrace(() => undefined);
  vm.unmapGfnRange({ slot: 0, start: 0, end: pages });
  const runs = vm.readTrace((_words, count) => count);
  rows.push(
    row({
      question: 'trace',
      guestBytes: bytes,
      operation: 'zap-whole-traced-runs',
      contender: 'eptsim',
      note: `${pages} changes in ${runs} records`,
    }),
  );

  // Overflow: a ring too small keeps what came first, and counts the rest.
  const tight = api.createVmSync({ memory: GIB, traceRecords: 64 });
  tight.host.mmap({ hva: HVA, length: GIB, kind: 'shmem' });
  tight.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: GIB, userspaceAddr: HVA });
  tight.readTrace(() => undefined);
  tight.vcpus[0].access({ gpa: 0, kind: 'write', stride: 2 * PAGE, count: 1000 });
  if (tight.traceDropped === 0) throw new Error('trace: a full ring dropped nothing');
  return rows;
}
