// Random allocations, holes, conversions, page-state changes, accesses, PVALIDATEs and RMP faults on a small file, on the
// engine and on the plain model of the RMP: after each they must agree in every entry, every leaf and every count.
//
// EPTSIM_PROPERTY_RUNS sets how many sequences one run does, EPTSIM_PROPERTY_SEED where it starts.

import fc from 'fast-check';
import { test } from 'vitest';
import { PlainRmp } from '../model/rmp.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';
import { makeSnp, type SnpVm } from '../support/snp-vm.ts';
import { RUNS as ALL_RUNS, SEED, TIMEOUT_MS } from './world.ts';

/** A sequence looks at every page after each command: fewer of them take as long. */
const RUNS = Math.ceil(ALL_RUNS / 10);

const NPAGES = 1600;
/** Where the slot may be: aligned to the file, and not. */
const BASES = [0, 0x1000, 0x2003, 0x3200];

const config = fc.record({
  kernel: fc.constantFrom('rfc-v4' as const, 'linux-6.12' as const, 'linux-6.16' as const),
  hasFolios: fc.constantFrom(true, true, false),
  rmpChecks: fc.boolean(),
});
const at = fc.oneof(fc.nat(NPAGES - 1), fc.constantFrom(0, 1, 511, 512, 513, 1023, 1024, 1536, 1599));
const count = fc.oneof(
  fc.integer({ min: 1, max: 8 }),
  fc.constantFrom(1, 511, 512, 513, 1024),
  fc.integer({ min: 1, max: 900 }),
);
const entry = fc.record({
  page: at,
  isHuge: fc.boolean(),
  isPrivate: fc.boolean(),
  curPage: fc.constantFrom(0, 0, 0, 0, 1, 5, 512, 513),
  aligned: fc.constantFrom(true, true, true, false),
});
const command = fc.oneof(
  { weight: 6, arbitrary: fc.record({ op: fc.constant('access' as const), at, count }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('convert' as const), at, count, isPrivate: fc.boolean() }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('punch' as const), at, count }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('allocate' as const), at, count }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('rmpFault' as const), at }) },
  {
    weight: 4,
    arbitrary: fc.record({
      op: fc.constant('pvalidate' as const),
      at,
      count,
      isHuge: fc.boolean(),
      validate: fc.constantFrom(true, true, false),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('psc' as const),
      entries: fc.array(entry, { minLength: 1, maxLength: 5 }),
      // Entries that follow each other, as a guest sends them.
      isRun: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ op: fc.constant('bind' as const), base: fc.nat(BASES.length - 1), pgoff: at, count }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('restore' as const) }) },
);
const sequence = fc.record({ config, commands: fc.array(command, { minLength: 1, maxLength: 24, size: 'max' }) });
type Command = typeof command extends fc.Arbitrary<infer T> ? T : never;

const NOTHING: [unknown, unknown] = [undefined, undefined];

/** Does `one` on both; each says what came of it. */
function perform(one: Command, snp: SnpVm, model: PlainRmp): [engine: unknown, model: unknown] {
  const { vm, file } = snp;
  const [vcpu] = vm.vcpus;
  const clip = (first: number, pages: number) => Math.min(pages, NPAGES - first);
  const { base, pgoff, npages } = model.slot;
  const gfnAt = (page: number) => base + (page % npages);
  switch (one.op) {
    case 'access': {
      const gfn = gfnAt(one.at);
      const pages = Math.min(one.count, base + npages - gfn);
      const exit = vcpu.access({ gpa: gfn * PAGE, kind: 'read', count: pages, private: true });
      return [`${exit.reason} ${exit.gpa / 4096n}`, model.access(gfn, pages)];
    }
    case 'convert': {
      const gfn = gfnAt(one.at);
      const address = gfn * PAGE;
      vm.setMemoryAttributes({ address, size: one.count * PAGE, attributes: one.isPrivate ? 8 : 0 });
      model.convert(gfn, gfn + one.count, one.isPrivate);
      return NOTHING;
    }
    case 'punch':
      file.punchHole(one.at * PAGE, one.count * PAGE);
      model.punch(one.at, one.count);
      return NOTHING;
    case 'allocate':
      file.allocate(one.at * PAGE, clip(one.at, one.count) * PAGE);
      model.allocate(one.at, clip(one.at, one.count));
      return NOTHING;
    case 'rmpFault':
      return [vcpu.rmpFault({ gpa: gfnAt(one.at) * PAGE }), model.rmpFault(gfnAt(one.at))];
    case 'pvalidate': {
      const step = one.isHuge ? 512 : 1;
      const gfn = gfnAt(one.at) - (gfnAt(one.at) % step);
      const pages = Math.ceil(one.count / step) * step;
      const { reason, gpa } = vcpu.pvalidate({
        gpa: gfn * PAGE,
        size: pages * PAGE,
        pageSize: one.isHuge ? '2M' : '4K',
        validate: one.validate,
      });
      return [`${reason} ${gpa / 4096n}`, model.pvalidate(gfn, pages, one.isHuge, one.validate)];
    }
    case 'psc': {
      let next = -1;
      const entries = one.entries.map(({ page, isHuge, isPrivate, curPage, aligned }, index) => {
        const huge = one.isRun ? one.entries[0].isHuge : isHuge;
        let gfn = one.isRun && index > 0 ? next : gfnAt(page);
        if (huge && aligned && !(one.isRun && index > 0)) gfn -= gfn % 512;
        next = gfn + (huge ? 512 : 1);
        return { gfn, isHuge: huge, isPrivate: one.isRun ? one.entries[0].isPrivate : isPrivate, curPage };
      });
      const exits: string[] = [];
      const { response } = vcpu.pageStateChange(
        {
          protocol: 'ghcb',
          entries: entries.map(({ gfn, isHuge, isPrivate, curPage }) => ({
            gpa: gfn * PAGE,
            pageSize: isHuge ? '2M' : '4K',
            operation: isPrivate ? 'private' : 'shared',
            curPage,
          })),
        },
        ({ gpa, npages: pages, private: isPrivate }) => {
          exits.push(`${gpa / 4096n}..${gpa / 4096n + BigInt(pages)} ${isPrivate ? 'private' : 'shared'}`);
          vm.setMemoryAttributes({ address: gpa, size: pages * PAGE, attributes: isPrivate ? 8 : 0 });
          return 0;
        },
      );
      return [[...exits, response].join(), model.pageStateChange(entries).join()];
    }
    case 'bind': {
      const first = one.pgoff - (one.base === 2 ? 0 : one.pgoff % 512);
      const pages = clip(first, Math.max(one.count, 600));
      snp.bindAt(BASES[one.base], pages, first);
      model.bind(BASES[one.base], first, pages);
      return NOTHING;
    }
    case 'restore': {
      const snapshot = vm.snapshot();
      file.punchHole(0, NPAGES * PAGE);
      vm.restore(snapshot);
      return [pgoff, pgoff];
    }
  }
}

function differences(snp: SnpVm, model: PlainRmp): string[] {
  const found: string[] = [];
  const say = (what: string, engine: unknown, plain: unknown) => {
    if (engine !== plain) found.push(`${what}: the engine ${engine}, the model ${plain}`);
  };
  const text = (gfn: number, isHuge: boolean, validated: boolean) => `${gfn} ${isHuge ? '2M' : '4K'} ${validated}`;
  for (let page = 0; page < NPAGES && found.length < 5; page++) {
    const entry = snp.file.rmp(page);
    const plain = model.entries[page];
    if (!entry.assigned && plain === null) continue;
    const engine = entry.assigned ? text(Number(entry.gpa / 4096n), entry.level === 2, entry.validated) : null;
    say(`entry ${page}`, engine, plain && text(plain.gfn, plain.isHuge, plain.validated));
  }
  const stats = snp.vm.stats();
  for (const [name, plain] of Object.entries(model.counters)) say(name, stats[name], plain);
  let mapped = 0;
  for (const { gfn, count: leafs, level } of snp.vm.leafs()) {
    for (let one = gfn; one < gfn + leafs * 512 ** (level - 1) && found.length < 9; one++) {
      mapped++;
      if (model.leafs.get(one) !== level) say(`the leaf of ${one}`, level, model.leafs.get(one));
    }
  }
  say('gfns mapped', mapped, model.leafs.size);
  // Whatever a guest and a VMM do, no page is assigned that is not there.
  const kinds = snp.vm.check().map(({ kind }) => kind);
  say('check()', kinds.filter((kind) => kind === 'rmp-stale' || kind === 'unflushed').join(), '');
  return found;
}

test(
  `${RUNS} sequences leave the RMP and its plain model alike`,
  () => {
    fc.assert(
      fc.property(sequence, ({ config: chosen, commands }) => {
        const { kernel, hasFolios, rmpChecks } = chosen;
        const snp = makeSnp({
          kernel,
          rmpChecks,
          npages: NPAGES,
          folioSize: hasFolios ? '2M' : '4K',
          hypercalls: true,
          traceRecords: 0,
          debug: isDebugBuild,
        });
        const model = new PlainRmp(NPAGES, hasFolios, kernel !== 'rfc-v4', rmpChecks);
        model.bind(0, 0, NPAGES);
        model.convert(0, NPAGES, true);
        for (const [index, one] of commands.entries()) {
          const [engine, plain] = perform(one, snp, model);
          const wrong = differences(snp, model);
          if (engine !== plain) wrong.unshift(`result: the engine ${engine}, the model ${plain}`);
          if (wrong.length === 0) continue;
          const said = commands.slice(0, index + 1).map((done) => JSON.stringify(done));
          throw new Error([...wrong, JSON.stringify(chosen), ...said].join('\n'));
        }
        snp.file.close();
        model.punch(0, NPAGES);
        const left = Object.entries(model.counters).filter(([name, plain]) => snp.vm.stats()[name] !== plain);
        if (left.length > 0) throw new Error(`after the close: ${JSON.stringify(left)}`);
      }),
      { numRuns: RUNS, ...SEED, verbose: 0 },
    );
  },
  TIMEOUT_MS,
);
