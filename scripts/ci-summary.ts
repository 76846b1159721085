// Ends a CI run: counts the tests of vitest's JSON report and sets the exit code.
// Usage: node scripts/run.mjs ci-summary REPORT TESTS-EXIT-CODE CHECK-EXIT-CODE
//
// A skipped test counts as failed, and so do a test file that did not load and a failed step of the check.

import { readFileSync } from 'node:fs';

interface Report {
  testResults: {
    name: string;
    status: string;
    message: string;
    assertionResults: { status: string; fullName: string }[];
  }[];
}

const [reportFile, testsExit, checkExit] = process.argv.slice(2);
const problems: string[] = [];
let passed = 0;
try {
  const report: Report = JSON.parse(readFileSync(reportFile ?? '', 'utf8'));
  for (const file of report.testResults) {
    for (const { status, fullName } of file.assertionResults) {
      if (status === 'passed') passed++;
      else problems.push(`${status}: ${file.name}: ${fullName}`);
    }
    if (file.status === 'failed' && file.assertionResults.every(({ status }) => status === 'passed')) {
      problems.push(`failed to run: ${file.name}: ${file.message}`);
    }
  }
} catch (error) {
  problems.push(`no test report: ${error instanceof Error ? error.message : String(error)}`);
}
if (passed === 0) problems.push('no test passed');
if (testsExit !== '0' && problems.length === 0) problems.push(`npm test exited with ${testsExit}`);
if (checkExit !== '0') problems.push(`npm run check -- --no-tests exited with ${checkExit}`);

for (const problem of problems) process.stdout.write(`${problem}\n`);
process.exitCode = problems.length === 0 ? 0 : 1;
process.stdout.write(`${passed} passed, ${problems.length} failed\n`);
