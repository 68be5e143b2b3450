// A web phone in a real browser: serves a page with JsSIP from loopback, opens it in headless Chromium and
// prints what the page says. Arguments: URL USER PASSWORD [PEER [TEXT]]; in the environment: PHONE_SPKI, the
// SHA-256 of the public key of the SBC's certificate in Base64, and PHONE_PORT, the page's port.
// SIGTERM unregisters and ends the browser.
'use strict';
const fs = require('fs');
const http = require('http');
const path = require('path');
const { spawn } = require('child_process');
const { createRequire } = require('module');

const [url, user, password, peer = '', text = ''] = process.argv.slice(2);
const port = Number(process.env.PHONE_PORT || 8080);
const say = (line) => console.log(line);

// The modules of JsSIP as one script: each in a function, by its path.
function bundle(entry) {
  const modules = new Map();
  const add = (file) => {
    if (modules.has(file)) return;
    const source = fs.readFileSync(file, 'utf8');
    if (file.endsWith('.json')) return void modules.set(file, { body: `module.exports = ${source}`, names: {} });
    const module = { body: source, names: {} };
    modules.set(file, module);
    for (const [, name] of source.matchAll(/\brequire\(['"]([^'"]+)['"]\)/g)) {
      // `events/` finds the package where node.js has a module of its own of that name.
      let found = createRequire(file).resolve(name === 'events' ? 'events/' : name);
      if (found.endsWith('debug/src/index.js')) found = found.replace('index.js', 'browser.js');
      module.names[name] = found;
      add(found);
    }
  };
  add(entry);
  const each = [...modules].map(([file, { body, names }]) =>
    `${JSON.stringify(file)}: [function (module, exports, require) {${body}\n}, ${JSON.stringify(names)}]`);
  return `const modules = {${each.join(',\n')}};
const process = { env: {} }, loaded = {};
function load(file) {
  if (loaded[file]) return loaded[file].exports;
  const module = loaded[file] = { exports: {} };
  const [body, names] = modules[file];
  body(module, module.exports, (name) => load(names[name]));
  return module.exports;
}
const JsSIP = load(${JSON.stringify(entry)});`;
}

// What the page does; `options` stands before it.
function phone() {
  let line = Promise.resolve();
  const tell = (words) => { line = line.then(() => fetch('/say', { method: 'POST', body: words })).catch(() => {}); };
  window.onerror = (message) => tell(`error: ${message}`);
  const ua = new JsSIP.UA({
    sockets: [new JsSIP.WebSocketInterface(options.url)],
    uri: `sip:${options.user}@example.com`,
    password: options.password,
    register_expires: 120,
  });
  ua.on('connected', () => tell('connected'));
  ua.on('disconnected', (e) => tell(`disconnected ${e.reason || e.code || ''}`));
  ua.on('registrationFailed', (e) => tell(`registration failed ${e.cause}`));
  ua.on('unregistered', () => tell('unregistered'));
  ua.on('newMessage', (e) => {
    if (e.originator !== 'remote') return;
    tell(`message from ${e.request.from.uri.user}: ${e.request.body}`);
    e.message.accept();
  });
  const send = (to, words) => ua.sendMessage(`sip:${to}@example.com`, words, {
    eventHandlers: {
      succeeded: () => tell('message sent'),
      failed: (e) => tell(`message failed ${e.cause}`),
    },
  });
  ua.on('registered', () => {
    tell('registered');
    if (options.peer) send(options.peer, options.text);
  });
  fetch('/stop').then(() => ua.stop()).catch(() => {});
  tell(navigator.userAgent);
  ua.start();
}

const page = `<!doctype html><meta charset="utf-8"><title>phone</title><script>
const options = ${JSON.stringify({ url, user, password, peer, text })};
${bundle(createRequire(__filename).resolve('jssip'))}
(${phone})();
</script>`;

let stopping;
const server = http.createServer((request, response) => {
  if (request.url === '/say') {
    let body = '';
    request.on('data', (part) => { body += part; });
    request.on('end', () => { say(body); response.end(); });
  } else if (request.url === '/stop') {
    stopping = response;
  } else if (request.url === '/') {
    response.setHeader('Content-Type', 'text/html');
    response.end(page);
  } else {
    response.statusCode = 404;
    response.end();
  }
});

server.listen(port, '127.0.0.1', () => {
  const home = fs.mkdtempSync(path.join(process.cwd(), 'web-phone-'));
  // The browser goes when this process does, however it goes.
  const browser = spawn('setpriv', ['--pdeathsig', 'KILL', 'chromium', '--headless', '--no-sandbox', '--disable-gpu',
    '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
    '--disable-sync', '--disable-dev-shm-usage', `--user-data-dir=${home}`,
    `--ignore-certificate-errors-spki-list=${process.env.PHONE_SPKI || ''}`, `http://127.0.0.1:${port}/`],
  { stdio: ['ignore', 'inherit', 'inherit'], env: { ...process.env, HOME: home } });
  browser.on('exit', (code, signal) => {
    say(`browser ended ${code ?? signal}`);
    fs.rmSync(home, { recursive: true, force: true, maxRetries: 10 });
    process.exit(0);
  });
  process.on('SIGTERM', () => {
    if (stopping) stopping.end();
    setTimeout(() => browser.kill('SIGTERM'), 1500);
  });
});
