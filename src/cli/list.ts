// `eptsim list`: the scenarios that come with the package, with their parameters.

import type { Command } from 'commander';
import { type Scenario, scenarios } from '../index.ts';
import { wrap } from './format.ts';

export function registerList(program: Command): void {
  program
    .command('list')
    .description('list the scenarios that come with eptsim, with their parameters')
    .option('--json', 'print one JSON object')
    .action(({ json }: { json?: boolean }) => {
      const list = Object.values(scenarios);
      process.stdout.write(
        json ? `${JSON.stringify({ scenarios: list.map(summary) }, undefined, 2)}\n` : formatList(list),
      );
    });
}

function summary({ name, description, parameters, compare }: Scenario): object {
  return {
    name,
    description,
    parameters: parameters ?? {},
    variants: (compare ?? [{ name }]).map((entry) => entry.name),
  };
}

function formatList(list: Scenario[]): string {
  const blocks = list.map(({ name, description, parameters, compare }) => {
    const lines = [name];
    if (description !== undefined) lines.push(wrap(`  ${description}`, 80, '  '));
    if (compare !== undefined)
      lines.push(wrap(`  variants: ${compare.map((entry) => entry.name).join(', ')}`, 80, '    '));
    for (const [parameter, declared] of Object.entries(parameters ?? {})) {
      const entry = typeof declared === 'object' ? declared : { default: declared };
      const words = entry.oneOf === undefined ? '' : ` (${entry.oneOf.join(' or ')})`;
      const about = entry.description === undefined ? '' : `  ${entry.description}`;
      lines.push(wrap(`  --set ${parameter}=${entry.default}${words}${about}`, 80, '      '));
    }
    return `${lines.join('\n')}\n`;
  });
  return blocks.join('\n');
}
