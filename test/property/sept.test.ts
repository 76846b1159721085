// Random operations of guest, VMM and module on a TD, on the engine and on the plain model of test/model/sept.ts: after each
// the same S-EPT states, mirror, epoch, calls by leaf function and status, kicks and losses; vm.check() finds what the model
// says disagrees, and nothing else.

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type CallableLeaf, createVmSync, KvmError, type LeafName, type TdxStatus, type Vm } from '../../src/index.ts';
import { Refused, SeptModel, type TdConfig } from '../model/sept.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { RUNS, SEED, TIMEOUT_MS } from './world.ts';

/** Two regions of 2M and a piece of a third, which no 2M leaf fits. */
const NPAGES = 1100;
const CALLABLE: CallableLeaf[] = [
  'TDH.MEM.SEPT.ADD',
  'TDH.MEM.PAGE.ADD',
  'TDH.MEM.PAGE.AUG',
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.MEM.PAGE.DEMOTE',
  'TDH.MEM.PAGE.PROMOTE',
  'TDG.MEM.PAGE.ACCEPT',
];
const INJECTABLE: LeafName[] = [...CALLABLE, 'TDH.VP.ENTER', 'TDH.PHYMEM.PAGE.WBINVD'];
const STATUSES: TdxStatus[] = ['TDX_OPERAND_BUSY', 'TDX_OPERAND_INVALID', 'TDX_INTERRUPTED_RESTARTABLE'];
const COUNTERS = [
  ...INJECTABLE,
  ...(['TDH.MR.FINALIZE', 'TDH.VP.FLUSH', 'TDH.MNG.VPFLUSHDONE', 'TDH.PHYMEM.CACHE.WB'] as const),
  ...(['TDH.MNG.KEY.FREEID', 'TDH.PHYMEM.PAGE.RECLAIM', 'kicks', 'kick_ipis', 'td_tlb_flushes'] as const),
  ...(['retries_busy', 'pages_accepted', 'pages_cleared', 'pages_leaked', 'private_pages_lost'] as const),
  ...(['private_pages_to_accept', 'gmem_pages_allocated', 'gmem_pages_freed', 'gfns_zapped_outside_request'] as const),
];

type Command =
  | { op: 'accept'; vcpu: number; gfn: number; pages: number; level: 1 | 2 }
  | { op: 'touch'; vcpu: number; gfn: number; pages: number; write: boolean }
  | { op: 'setInGuest'; vcpu: number; on: boolean }
  | { op: 'beginAccept'; vcpu: number; gfn: number; level: 1 | 2 }
  | { op: 'finishAccept' | 'beginEnter' | 'finishEnter'; vcpu: number }
  | { op: 'convert'; gfn: number; pages: number; toPrivate: boolean }
  | { op: 'mapGpa'; vcpu: number; gfn: number; pages: number; toPrivate: boolean }
  | { op: 'punch' | 'allocate' | 'initMemRegion'; gfn: number; pages: number }
  | { op: 'preFault'; vcpu: number; gfn: number; pages: number }
  | { op: 'deleteSlot' | 'createSlot' | 'finalize' }
  | { op: 'seamcall'; leaf: CallableLeaf; gfn: number; level: number }
  | { op: 'inject'; leaf: LeafName; status: TdxStatus; skip: number; times: number };

const VCPUS = 3;
const vcpu = fc.nat({ max: VCPUS - 1 });
/** Ends of regions, and what lies near them, more often than chance would have it. */
const gfn = fc.oneof(fc.constantFrom(0, 1, 511, 512, 513, 1023, 1024), fc.nat({ max: NPAGES - 1 }));
const pages = fc.oneof(
  fc.integer({ min: 1, max: 8 }),
  fc.constantFrom(511, 512, 513, 1024),
  fc.integer({ min: 1, max: NPAGES }),
);
const page = (base: number) => base - (base % 512);
const anyLevel = fc.constantFrom(1 as const, 1 as const, 2 as const);
/** An address that fits its level, mostly. */
const aligned = fc
  .tuple(gfn, fc.constantFrom(1, 1, 1, 2, 2, 3, 4), fc.nat({ max: 9 }))
  .map(([at, level, luck]) => ({ level, gfn: level === 1 || luck === 0 ? at : level === 2 ? page(at) : 0 }));
const guest: fc.Arbitrary<Command>[] = [
  fc.record({ op: fc.constant('accept' as const), vcpu, gfn, pages, level: anyLevel }),
  fc.record({ op: fc.constant('touch' as const), vcpu, gfn, pages, write: fc.boolean() }),
  fc.record({ op: fc.constant('setInGuest' as const), vcpu, on: fc.boolean() }),
  fc
    .record({ op: fc.constant('beginAccept' as const), vcpu, gfn, level: anyLevel })
    .map((one) => ({ ...one, gfn: one.level === 2 ? page(one.gfn) : one.gfn })),
  fc.record({ op: fc.constantFrom('finishAccept' as const, 'beginEnter' as const, 'finishEnter' as const), vcpu }),
];
const vmm: fc.Arbitrary<Command>[] = [
  fc.record({ op: fc.constant('convert' as const), gfn, pages, toPrivate: fc.boolean() }),
  fc.record({ op: fc.constant('mapGpa' as const), vcpu, gfn, pages, toPrivate: fc.boolean() }),
  fc.record({ op: fc.constantFrom('punch' as const, 'allocate' as const, 'initMemRegion' as const), gfn, pages }),
  fc.record({ op: fc.constant('preFault' as const), vcpu, gfn, pages }),
  fc.record({ op: fc.constantFrom('deleteSlot' as const, 'createSlot' as const, 'finalize' as const) }),
];
const module: fc.Arbitrary<Command>[] = [
  fc.tuple(fc.constantFrom(...CALLABLE), aligned).map(([leaf, at]) => ({ op: 'seamcall' as const, leaf, ...at })),
];
const busy: fc.Arbitrary<Command>[] = [
  fc.record({
    op: fc.constant('inject' as const),
    leaf: fc.constantFrom(...INJECTABLE),
    status: fc.constantFrom(STATUSES[0], STATUSES[0], STATUSES[0], ...STATUSES),
    skip: fc.nat({ max: 3 }),
    times: fc.nat({ max: 3 }),
  }),
];

/** The range of a command, within the guest. */
const rangeOf = (command: { gfn: number; pages: number }) => ({
  start: command.gfn,
  end: Math.min(command.gfn + command.pages, NPAGES),
});

class Pair {
  readonly vm: Vm;
  readonly model: SeptModel;
  readonly #file: ReturnType<Vm['createGuestMemfd']>;

  constructor(config: TdConfig) {
    const { hugePages, folios, zap, track, localRetry, build } = config;
    this.vm = createVmSync({
      type: 'tdx',
      memory: 2048 * PAGE,
      vcpus: VCPUS,
      septVeDisable: false,
      debug: isDebugBuild,
      td: { hugePages, zap, track, localRetry, build },
    });
    this.vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: NPAGES * PAGE });
    this.vm.enableCap({ cap: 201, args: [1 << 12] });
    this.#file = this.vm.createGuestMemfd({ size: NPAGES * PAGE, folioSize: folios ? '2M' : '4K' });
    this.#slot(NPAGES);
    this.model = new SeptModel(config);
    this.vm.setMemoryAttributes({ address: 0, size: 800 * PAGE, attributes: 8 });
    this.model.convert(0, 800, true);
  }
  #slot(npages: number): void {
    this.vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0,
      memorySize: npages * PAGE,
      userspaceAddr: SLOT_HVA,
      guestMemfd: this.#file.fd,
    });
  }

  /** What a command gives on the engine and on the model, as text. */
  run(command: Command): [string, string] {
    return [this.#outcome(() => this.#onEngine(command)), this.#outcome(() => this.#onModel(command))];
  }
  #outcome(call: () => unknown): string {
    try {
      return String(call());
    } catch (error) {
      if (error instanceof KvmError || error instanceof Refused) return error.code;
      throw error;
    }
  }
  #onEngine(command: Command): unknown {
    const { vm } = this;
    const range = 'pages' in command ? rangeOf(command) : { start: 0, end: 0 };
    const gpa = range.start * PAGE;
    const size = (range.end - range.start) * PAGE;
    const at = 'vcpu' in command ? vm.vcpus[command.vcpu] : vm.vcpus[0];
    switch (command.op) {
      case 'accept':
        return at.accept({ gpa, size, level: command.level });
      case 'touch': {
        const exit = at.access({ gpa, size, kind: command.write ? 'write' : 'read', private: true });
        return `${exit.reason} ${exit.done}`;
      }
      case 'setInGuest':
        return at.setInGuest(command.on);
      case 'beginAccept':
        return at.beginAccept({ gpa: command.gfn * PAGE, level: command.level });
      case 'finishAccept':
        return at.finishAccept();
      case 'beginEnter':
        return at.beginEnter();
      case 'finishEnter':
        return at.finishEnter();
      case 'convert':
        return vm.setMemoryAttributes({ address: gpa, size, attributes: command.toPrivate ? 8 : 0 });
      case 'mapGpa':
        return at.mapGpa({ gpa: gpa + (command.toPrivate ? 0 : 2 ** 47), size }).status;
      case 'punch':
        return void this.#file.punchHole(gpa, size);
      case 'allocate':
        return void this.#file.allocate(gpa, size);
      case 'initMemRegion':
        try {
          return at.initMemRegion({ gpa, pages: range.end - range.start });
        } catch (error) {
          if (!(error instanceof KvmError) || error.left === undefined) throw error;
          return `${error.code} at ${Number(error.left.gpa) / PAGE}`;
        }
      case 'preFault':
        return Number(at.preFaultMemory({ gpa, size }).size) / PAGE;
      case 'deleteSlot':
        return this.#slot(0);
      case 'createSlot':
        return this.#slot(NPAGES);
      case 'finalize':
        return vm.tdx.finalize();
      case 'seamcall':
        return vm.tdx.seamcall(command.leaf, { gpa: command.gfn * PAGE, level: command.level });
      case 'inject':
        return vm.tdx.injectStatus(command);
    }
  }
  #onModel(command: Command): unknown {
    const { model } = this;
    const { start, end } = 'pages' in command ? rangeOf(command) : { start: 0, end: 0 };
    switch (command.op) {
      case 'accept':
        return model.accept(command.vcpu, start, end, command.level);
      case 'touch': {
        if (model.state === 'build') return 'error 0';
        const { reason, done } = model.access(command.vcpu, start, end - start, command.write);
        return `${reason} ${done}`;
      }
      case 'setInGuest':
        return model.setInGuest(command.vcpu, command.on);
      case 'beginAccept':
        return model.beginAccept(command.vcpu, command.gfn, command.level);
      case 'finishAccept':
        return model.finishAccept(command.vcpu);
      case 'beginEnter':
        return model.beginEnter(command.vcpu);
      case 'finishEnter':
        return model.finishEnter(command.vcpu);
      case 'convert':
        return model.convert(start, end, command.toPrivate);
      case 'mapGpa':
        if (model.state === 'build') throw new Refused('EINVAL');
        for (let gfn = start; gfn < end; gfn += 512) {
          // Each chunk is an ioctl of its own.
          if (model.dead) throw new Refused('EIO');
          model.convert(gfn, Math.min(gfn + 512, end), command.toPrivate);
        }
        return 'SUCCESS';
      case 'punch':
        return model.punch(start, end);
      case 'allocate':
        return model.allocate(start, end);
      case 'initMemRegion': {
        const { gfn: at, errno } = model.initMemRegion(start, end);
        return errno === null ? undefined : `${errno} at ${at}`;
      }
      case 'preFault':
        return model.preFault(start, end);
      case 'deleteSlot':
        return model.deleteSlot();
      case 'createSlot':
        return model.createSlot();
      case 'finalize':
        return model.finalize();
      case 'seamcall':
        return model.direct(command.leaf, command.gfn, command.level);
      case 'inject':
        model.inject = { ...command };
        return undefined;
    }
  }

  /** Everything that can be seen of both, line by line. */
  seen(): { engine: string[]; model: string[] } {
    const { vm, model } = this;
    const spread = (leafs: { gfn: number; count: number; level: number; text: string }[]) => {
      const all = Array.from({ length: NPAGES }, () => 'FREE');
      for (const { gfn, count, level, text } of leafs) all.fill(text, gfn, gfn + count * 512 ** (level - 1));
      return all;
    };
    const runs = (name: string, all: string[]) => {
      const lines: string[] = [];
      for (let at = 0; at < all.length; ) {
        let end = at;
        while (end < all.length && all[end] === all[at]) end++;
        if (all[at] !== 'FREE') lines.push(`${name} ${at}..${end - 1} ${all[at]}`);
        at = end;
      }
      return lines;
    };
    const sept = vm.tdx.leafs().map((run) => ({ ...run, text: `${run.state} L${run.level}` }));
    const mirror = vm.leafs({ root: 'mirror' }).map((run) => ({ ...run, text: `L${run.level}` }));
    const stats = vm.stats() as Record<string, number>;
    const statuses = Object.entries(vm.tdx.statuses()).flatMap(([leaf, table]) =>
      Object.entries(table ?? {}).map(([status, times]) => `${leaf} ${status} ${times}`),
    );
    const found = vm.check().filter(({ kind }) => model.dead === false || kind === 'sept-disagrees');
    const wrong = found.filter(({ kind }) => kind !== 'sept-disagrees').map(({ message }) => message);
    const differing = found.filter(({ kind }) => kind === 'sept-disagrees');
    const engine = [
      ...runs('sept', spread(sept)),
      ...runs('mirror', spread(mirror)),
      ...COUNTERS.map((name) => `${name} ${stats[name]}`),
      ...statuses.sort(),
      ...wrong,
      ...runs('disagree', spread(differing.map(({ gfn, count }) => ({ gfn, count, level: 1, text: 'yes' })))),
      `epoch ${vm.tdx.epoch} ${vm.tdx.state} dead ${vm.dead}`,
    ];
    const flags = Array.from({ length: NPAGES }, () => 'FREE');
    for (const at of model.disagreements()) flags[at] = 'yes';
    const failures = [...model.counts]
      .filter(([name]) => name.includes(' '))
      .map(([name, times]) => `${name} ${times}`);
    return {
      engine,
      model: [
        ...runs(
          'sept',
          Array.from({ length: NPAGES }, (_, at) => model.stateOf(at)),
        ),
        ...runs(
          'mirror',
          model.mirror.map((leaf) => (leaf ? `L${leaf.level}` : 'FREE')),
        ),
        ...COUNTERS.map((name) => `${name} ${model.counts.get(name) ?? 0}`),
        ...failures.sort(),
        ...runs('disagree', flags),
        `epoch ${model.epoch} ${model.state} dead ${model.dead}`,
      ],
    };
  }
  /** The files and the VM are closed. */
  end(): void {
    this.#file.close();
    this.vm.destroy();
    this.model.end();
  }
}

function play(config: TdConfig, commands: Command[]): void {
  const pair = new Pair(config);
  const done: Command[] = [];
  const compare = (what: string) => {
    const { engine, model } = pair.seen();
    if (engine.join('\n') === model.join('\n')) return;
    expect(engine, `${what}, after ${done.map((one) => JSON.stringify(one)).join('\n')}`).toEqual(model);
  };
  for (const command of commands) {
    done.push(command);
    const [engine, model] = pair.run(command);
    expect(engine, `result of the last of ${done.map((one) => JSON.stringify(one)).join('\n')}`).toBe(model);
    compare('state');
    if (pair.model.dead) break;
  }
  // What was to fail at the end is another rule's business.
  if (pair.model.inject !== null && !pair.model.dead) {
    pair.run({ op: 'inject', leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', skip: 0, times: 0 });
  }
  if (pair.model.dead) return;
  pair.end();
  const { engine, model } = pair.seen();
  expect(engine.filter((line) => !/^epoch/.test(line))).toEqual(model.filter((line) => !/^epoch/.test(line)));
}

const configs = fc.record({
  npages: fc.constant(NPAGES),
  vcpus: fc.constant(VCPUS),
  folios: fc.constantFrom(true, true, false),
  zap: fc.constantFrom('whole-leaf' as const, 'split-first' as const, 'split-boundary' as const),
  track: fc.constantFrom('per-page' as const, 'per-page' as const, 'batched' as const),
  localRetry: fc.boolean(),
  build: fc.nat({ max: 3 }).map((one) => one === 0),
});

describe.each([
  ['private pages of 4K', false],
  ['private pages of 2M too', true],
])('%s', (_, hugePages) => {
  test.each<[string, fc.Arbitrary<Command>[], boolean]>([
    ['guest and VMM', [...guest, ...vmm], false],
    ['guest, VMM and a module that fails', [...guest, ...vmm, ...guest, ...vmm, ...busy, ...busy], false],
    ['guest, VMM, and calls past KVM', [...guest, ...vmm, ...module, ...module, ...module, ...busy], true],
  ])(
    '%s: the engine and the plain model agree after each operation',
    (_kind, commands) => {
      fc.assert(
        fc.property(configs, fc.array(fc.oneof(...commands), { minLength: 4, maxLength: 14 }), (config, list) => {
          play({ ...config, hugePages }, list);
        }),
        { numRuns: Math.ceil(RUNS / 6), ...SEED },
      );
    },
    TIMEOUT_MS,
  );
});
