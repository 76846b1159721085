// What a person reads of a scenario's result: a table for the measured step, one for each step after it, a legend.
//
// Rows are counters, columns are variants. More variants than a line holds go to further tables below.

import Table from 'cli-table3';
import pc from 'picocolors';
import type { Loss, Losses, ScenarioResult, StepResult } from '../index.ts';

export interface TableOptions {
  /** The place of the measured step among the steps of each variant; undefined if all are. */
  measured?: number;
  /** The place of the step that ends the guest: what it loses from there on is nobody's loss. */
  last?: number;
  /** Columns of the terminal. */
  width: number;
  color: boolean;
}

interface Row {
  label: string;
  value(step: StepResult): number;
  /** Shown although every variant has 0. */
  always?: boolean;
  /** A number other than 0 is bad news. */
  bad?: boolean;
}

const zapped = (tree: string, leaf: string, always: boolean): Row => ({
  label: `leaves zapped, ${tree} ${leaf}`,
  value: ({ counters }) => counters[`leafs_zapped_${tree}_${leaf.toLowerCase()}`] ?? 0,
  always,
});

const counter = (label: string, name: string): Row => ({
  label,
  value: ({ counters }) => counters[name] ?? 0,
  always: true,
});

/** Shown where a variant has any: calls of the TDX module, updates of SNP's RMP. */
const call = (name: string): Row => ({ label: name, value: ({ counters }) => counters[name] ?? 0 });

const loss = (label: string, name: keyof Losses): Row => ({
  label,
  value: ({ losses }) => losses[name],
  always: true,
  bad: true,
});

const ROWS: Row[] = [
  zapped('direct', '4K', true),
  zapped('direct', '2M', false),
  zapped('direct', '1G', false),
  zapped('mirror', '4K', true),
  zapped('mirror', '2M', false),
  zapped('mirror', '1G', false),
  counter('gfns outside the request', 'gfns_zapped_outside_request'),
  loss('private pages lost', 'privatePagesLost'),
  loss('pages to accept again', 'pagesToAccept'),
  loss('stale shared leaves', 'staleSharedLeaves'),
  counter('page tables freed', 'tables_freed'),
  counter('remote flushes', 'remote_tlb_flush_requests'),
  call('TDH.MEM.RANGE.BLOCK'),
  call('TDH.MEM.TRACK'),
  call('kicks'),
  call('TDH.MEM.PAGE.DEMOTE'),
  call('TDH.MEM.PAGE.REMOVE'),
  call('TDH.PHYMEM.PAGE.WBINVD'),
  call('TDH.PHYMEM.PAGE.RECLAIM'),
  call('rmp_updates_private_4k'),
  call('rmp_updates_private_2m'),
  call('rmp_updates_shared_4k'),
  call('rmp_updates_shared_2m'),
  call('PSMASH'),
  call('rmp_faults_psmash'),
  counter('entries visited', 'entries_visited'),
];

const LEGEND: [string, string][] = [
  ['leaves zapped', 'page-table entries that mapped a page (4K, 2M or 1G) and were emptied, by tree.'],
  ['direct', "the page tables the CPU walks: a TD's shared mappings, all mappings of any other VM."],
  ['mirror', "KVM's copy of a TD's Secure EPT, which holds its private mappings; only TDs have one."],
  ['gfns outside the request', '4K pages a huge leaf took along although the range did not ask for them.'],
  ['private pages lost', 'private pages whose content the step destroyed.'],
  ['pages to accept again', 'pages the guest had accepted and must accept anew before it can use them.'],
  ['stale shared leaves', 'shared mappings of memory that is private now; they stay until guest_memfd is dealt with.'],
  ['TDH.*', 'calls of the TDX module by KVM; kicks: broadcasts that take all vCPUs out of the guest.'],
  ['rmp_*', "updates of SNP's RMP, and its faults; PSMASH: a 2M entry of the RMP split into 512 of 4K."],
  ['entries visited', 'page-table entries KVM reads on the way.'],
];

const number = new Intl.NumberFormat('en-US');

/** The whole answer of `eptsim run` for a person. */
export function formatResult(result: ScenarioResult, options: TableOptions): string {
  const { measured, last } = options;
  const colors = pc.createColors(options.color);
  const parameters = Object.entries(result.parameters).map(([name, value]) => `${name} ${formatQuantity(value)}`);
  const blocks: string[] = [];
  const title = colors.bold(result.scenario);
  blocks.push([title, ...(parameters.length > 0 ? [wrap(parameters.join(', '), options.width, '')] : [])].join('\n'));

  const steps = result.variants[0].steps;
  const main = result.variants.map(({ counters, losses, name }) => ({ name, counters, losses }));
  blocks.push(...tables(measured === undefined ? 'all steps' : steps[measured].name, main, ROWS, options));
  const unrequested = result.variants.flatMap(({ name, unrequested: losses }) => lossLines(name, losses ?? []));
  if (unrequested.length > 0) {
    const lines = unrequested.map((line) => wrap(line, options.width, '  '));
    blocks.push([colors.bold('nobody asked for'), ...lines].join('\n'));
  }
  for (const [after, { name }] of measured === undefined ? [] : [...steps.entries()].slice(measured + 1)) {
    const columns = result.variants.map((variant) => ({ ...variant.steps[after], name: variant.name }));
    const kept = last !== undefined && after >= last ? ROWS.filter(({ bad }) => !bad) : ROWS;
    const rows = kept.map((row) => ({ ...row, always: false }));
    blocks.push(...tables(`then: ${name}`, columns, rows, options));
  }
  blocks.push(legend(options));
  return `${blocks.join('\n\n')}\n`;
}

/** Losses shown of one variant. */
const LOSSES_SHOWN = 4;

/** What a variant lost although no request asked for it, a line a range: where, how much, by whom and with which filter. */
function lossLines(variant: string, losses: readonly Loss[]): string[] {
  const lines = losses.slice(0, LOSSES_SHOWN).map(({ kind, root, start, end, producer, filter }) => {
    const one = end - start === 1;
    const what =
      kind === 'content'
        ? `${one ? 'page' : 'pages'} of private content`
        : `${one ? 'gfn' : 'gfns'} zapped beyond the range (${root})`;
    const flags = [filter.onlyPrivate ? 'only_private' : '', filter.onlyShared ? 'only_shared' : ''].filter(Boolean);
    const said = flags.length > 0 ? flags.join(', ') : `attributes ${filter.attributes}`;
    const range = `[0x${start.toString(16)}, 0x${end.toString(16)})`;
    return `${variant}: ${number.format(end - start)} ${what}, gfns ${range}, by ${producer} (form ${filter.form}: ${said})`;
  });
  if (losses.length > LOSSES_SHOWN) lines.push(`${variant}: and ${losses.length - LOSSES_SHOWN} ranges more`);
  return lines;
}

/** One table of `columns`, or several where the terminal is too narrow for one. */
function tables(title: string, columns: StepResult[], rows: Row[], options: TableOptions): string[] {
  const colors = pc.createColors(options.color);
  const shown = rows.filter((row) => row.always || columns.some((column) => row.value(column) !== 0));
  const head = Math.max(title.length, ...shown.map(({ label }) => label.length));
  const widths = columns.map((column) =>
    Math.max(column.name.length, ...shown.map((row) => number.format(row.value(column)).length)),
  );
  if (shown.length === 0) return [`${colors.bold(title)}\nnothing counted`];
  const blocks: string[] = [];
  for (let first = 0; first < columns.length; ) {
    let last = first + 1;
    let used = head + 2 + widths[first];
    while (last < columns.length && used + 2 + widths[last] <= options.width) used += 2 + widths[last++];
    const table = new Table({
      chars: BARE,
      style: { head: [], border: [], 'padding-left': 0, 'padding-right': 2, compact: true },
      colAligns: ['left', ...columns.slice(first, last).map(() => 'right' as const)],
    });
    table.push([colors.bold(title), ...columns.slice(first, last).map(({ name }) => colors.bold(name))]);
    table.push(['-'.repeat(head), ...widths.slice(first, last).map((width) => '-'.repeat(width))].map(colors.dim));
    for (const row of shown) {
      const cells = columns.slice(first, last).map((column) => {
        const value = row.value(column);
        const text = number.format(value);
        return value === 0 ? colors.dim(text) : row.bad ? colors.red(text) : text;
      });
      table.push([row.label, ...cells]);
    }
    blocks.push(
      table
        .toString()
        .split('\n')
        .map((line) => line.trimEnd())
        .join('\n'),
    );
    first = last;
  }
  return blocks;
}

const BARE = Object.fromEntries(
  [
    ...['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right'],
    ...['left', 'left-mid', 'mid', 'mid-mid', 'right', 'right-mid', 'middle'],
  ].map((name) => [name, '']),
);

function legend({ width, color }: TableOptions): string {
  const colors = pc.createColors(color);
  return LEGEND.map(([term, meaning]) => colors.dim(wrap(`${term}: ${meaning}`, width, '  '))).join('\n');
}

/** `text` in lines of at most `width`, the second and later ones after `indent`. */
export function wrap(text: string, width: number, indent: string): string {
  const [, start, rest] = /^(\s*)(.*)$/s.exec(text) as unknown as [string, string, string];
  const lines: string[] = [];
  let line = start;
  for (const part of rest.split(' ')) {
    if (line.trim() !== '' && line.length + 1 + part.length > width) {
      lines.push(line);
      line = indent + part;
    } else line += line.trim() === '' ? part : ` ${part}`;
  }
  lines.push(line);
  return lines.join('\n');
}

/** Bytes with their largest whole unit: 1GiB for 1073741824; anything else as it is. */
export function formatQuantity(value: number | string | boolean): string {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1024) return String(value);
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  let unit = -1;
  let rest = value;
  while (unit < units.length - 1 && rest % 1024 === 0) {
    rest /= 1024;
    unit++;
  }
  return unit < 0 ? String(value) : `${rest}${units[unit]}`;
}

/** A duration a person can place: 12 ms, 3.4 s. */
export function formatDuration(milliseconds: number): string {
  return milliseconds < 1000 ? `${milliseconds.toFixed(0)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
