// How does the cost of a whole-guest zap grow with the guest, from 4 GiB to 64 TiB?
//
// As in ranges.bench.ts the count and 1,000 seeded sptes are read back before the clock stops. In a uniform guest that takes
// longer than the zap: the zap alone, up to the count, stands beside it. Writes build/bench/growth.svg: both axes
// logarithmic. The slope of a line through the points is printed: 1 would be a cost in proportion to the pages, 0 a cost
// that does not depend on them.

import { mkdirSync, writeFileSync } from 'node:fs';
import type { Vm } from '../src/index.ts';
import { api, mapAll, vmOf, warmUp, zapWhole } from './peers/eptsim.ts';
import { type BenchContext, median, type Row, row, spreadOf } from './rows.ts';
import { timeOf } from './table.ts';
import { GIB, gfnsAnywhere, PAGE, READ_BACK, SEED, TIB } from './workloads.ts';

const SLOT_BYTES = 4 * TIB;

interface Point {
  bytes: number;
  ns: number;
}

/** Least squares through the logarithms. */
export function slopeOf(points: readonly Point[]): number {
  const xs = points.map(({ bytes }) => Math.log(bytes));
  const ys = points.map(({ ns }) => Math.log(ns));
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const x = mean(xs);
  const y = mean(ys);
  return (
    xs.reduce((sum, value, at) => sum + (value - x) * (ys[at] - y), 0) /
    xs.reduce((sum, value) => sum + (value - x) ** 2, 0)
  );
}

function svgOf(lines: { name: string; points: Point[] }[]): string {
  const all = lines.flatMap(({ points }) => points);
  const span = (values: number[]) => [
    Math.floor(Math.log10(Math.min(...values))),
    Math.ceil(Math.log10(Math.max(...values))),
  ];
  const [yLow, yHigh] = span(all.map(({ ns }) => ns));
  const xLow = Math.log2(Math.min(...all.map(({ bytes }) => bytes)));
  const xHigh = Math.log2(Math.max(...all.map(({ bytes }) => bytes)));
  const x = (bytes: number) => 70 + ((Math.log2(bytes) - xLow) / (xHigh - xLow)) * 500;
  const y = (ns: number) => 320 - ((Math.log10(ns) - yLow) / Math.max(1, yHigh - yLow)) * 280;
  const size = (bytes: number) => (bytes >= TIB ? `${bytes / TIB} TiB` : `${bytes / GIB} GiB`);
  const shown = (ns: number) => (ns >= 1e6 ? `${ns / 1e6} ms` : ns >= 1000 ? `${ns / 1000} us` : `${ns} ns`);
  const parts = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-family="sans-serif" font-size="11">',
  ];
  parts.push('<rect width="640" height="380" fill="white"/>');
  for (let power = yLow; power <= yHigh; power++) {
    parts.push(`<path d="M70 ${y(10 ** power)}H570" stroke="#ddd"/>`);
    parts.push(`<text x="64" y="${y(10 ** power) + 4}" text-anchor="end">${shown(10 ** power)}</text>`);
  }
  for (const bytes of [...new Set(all.map((point) => point.bytes))]) {
    parts.push(`<text x="${x(bytes)}" y="340" text-anchor="middle" font-size="9">${size(bytes)}</text>`);
  }
  for (const [index, { name, points }] of lines.entries()) {
    const colour = ['#0072b2', '#d55e00', '#009e73'][index];
    parts.push(
      `<polyline fill="none" stroke="${colour}" points="${points.map((p) => `${x(p.bytes)},${y(p.ns)}`).join(' ')}"/>`,
    );
    for (const point of points)
      parts.push(`<circle cx="${x(point.bytes)}" cy="${y(point.ns)}" r="3" fill="${colour}"/>`);
    parts.push(
      `<text x="80" y="${360 + index * 13 - 4}" fill="${colour}">${name}: slope ${slopeOf(points).toFixed(2)}</text>`,
    );
  }
  parts.push('</svg>');
  return `${parts.join('\n')}\n`;
}

export default async function growth({ quick, say }: BenchContext): Promise<Row[]> {
  const rows: Row[] = [];
  const points: Point[] = [];
  const zaps: Point[] = [];
  warmUp();
  for (let bytes = 4 * GIB; bytes <= (quick ? TIB : 64 * TIB); bytes *= 4) {
    const vm = bytes <= SLOT_BYTES ? vmOf({ bytes, density: 'full', leaves: '4k' }) : undefined;
    const large = vm ?? largeVm(bytes);
    const samples: number[] = [];
    const alone: number[] = [];
    for (let round = -20; round < 50; round++) {
      mapAll(large, bytes);
      const { ns, zapNs, leafs, looked } = zapWhole(large, bytes, gfnsAnywhere(bytes / PAGE, READ_BACK, SEED + round));
      if (leafs !== bytes / PAGE || looked !== 0) throw new Error('growth: not all was zapped');
      if (round < 0) continue;
      samples.push(ns);
      alone.push(zapNs);
    }
    const nsPerOperation = median(samples);
    points.push({ bytes, ns: nsPerOperation });
    zaps.push({ bytes, ns: median(alone) });
    rows.push(
      row({
        question: 'growth',
        guestBytes: bytes,
        operation: 'zap-whole',
        contender: 'eptsim',
        nsPerOperation,
        nsPerPage: nsPerOperation / (bytes / PAGE),
        samples: samples.length,
        spread: spreadOf(samples),
        note: `${timeOf(median(alone))} until the count was read, the rest for ${READ_BACK} sptes`,
      }),
    );
  }
  mkdirSync('build/bench', { recursive: true });
  const lines = [
    { name: `zap whole guest, uniform, read ${READ_BACK} sptes`, points },
    { name: 'the zap alone', points: zaps },
  ];
  writeFileSync('build/bench/growth.svg', svgOf(lines));
  const note = `slope ${slopeOf(points).toFixed(3)}, of the zap alone ${slopeOf(zaps).toFixed(3)} (1: in proportion to the pages)`;
  say(`growth: ${note}; build/bench/growth.svg`);
  rows.push(row({ question: 'growth', operation: 'zap-whole-slope', contender: 'eptsim', note }));
  return rows;
}

function largeVm(bytes: number): Vm {
  const vm = api.createVmSync({ memory: bytes });
  const hva = 2 ** 44;
  vm.host.mmap({ hva, length: bytes, kind: 'shmem' });
  vm.host.access({ hva, length: bytes, write: true });
  for (let slot = 0; slot * SLOT_BYTES < bytes; slot++) {
    const at = slot * SLOT_BYTES;
    vm.setUserMemoryRegion({ slot, guestPhysAddr: at, memorySize: SLOT_BYTES, userspaceAddr: hva + at });
  }
  return vm;
}
