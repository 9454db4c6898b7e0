// bullmq: one job at a time; tuned are a shorter lock (which its workers renew) and the check for stalled jobs.
// The same job, record and pacing as harness.py; process.hrtime is the machine's monotonic clock here, too.
const fs = require('fs');
const { Queue, Worker } = require('bullmq');

const env = process.env;
const connection = {
  host: '127.0.0.1',
  port: Number(env.BENCH_PORT),
  password: env.BENCH_PASSWORD,
  db: Number(env.BENCH_DATABASE || 0),
  maxRetriesPerRequest: null,
};
const RECORD_BYTES = 62;
const STUCK_NS = 30n * 10n ** 9n;
const file = env.BENCH_RECORDS;
const records = fs.openSync(file, 'a');
const prompt = 'a lighthouse in a storm, waves against the rocks, cinematic light, film grain, 35 mm '.repeat(3);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function body(seq) {
  // A number of nanoseconds is above 2^53 after some months of uptime: it is put in as text.
  const request = { prompt, width: 512, height: 512, frames: 16, steps: 20, seed: seq };
  return JSON.stringify(request).slice(0, -1) + `,"metadata":{"seq":${seq},"sent":${process.hrtime.bigint()}}}`;
}

async function run(text) {
  const [, seq, sent] = /"seq":(\d+),"sent":(\d+)/.exec(text);
  const line = [[process.pid, 10], [seq, 8], [sent, 20], [process.hrtime.bigint(), 20]];
  fs.writeSync(records, line.map(([value, width]) => String(value).padStart(width)).join(' ') + '\n');
  JSON.parse(text);
  if (fs.existsSync(file + '.hold')) await sleep(3600 * 1000);
}

async function submit(count, paced) {
  const queue = new Queue('bench', { connection });
  await queue.waitUntilReady();
  const began = process.hrtime.bigint();
  for (let seq = 0; seq < count; seq++) {
    await queue.add('job', { text: body(seq) }, { removeOnComplete: true });
    if (!paced) continue;
    const limit = process.hrtime.bigint() + STUCK_NS;
    while (fs.statSync(file).size < (seq + 1) * RECORD_BYTES) {
      if (process.hrtime.bigint() > limit) throw new Error(`job ${seq} has not started`);
      await sleep(2);
    }
    await sleep(30 + 30 * Math.random());
  }
  console.log(`{"began": ${began}, "ended": ${process.hrtime.bigint()}}`);
  await queue.close();
}

if (process.argv[2] === 'submit') {
  submit(Number(process.argv[3]), process.argv[4] === 'paced').catch((error) => {
    console.error(error);
    process.exit(1);
  });
} else {
  const tuned = env.BENCH_PROFILE === 'tuned' ? { lockDuration: 3000, stalledInterval: 1000 } : {};
  new Worker('bench', (job) => run(job.data.text), { connection, concurrency: 1, ...tuned });
}
