// A web phone without a screen: registers over a (secure) WebSocket, sends and takes a MESSAGE.
// Arguments: URL USER PASSWORD [PEER]; the authority's certificate is in the environment as PHONE_CA.
'use strict';
const fs = require('fs');
const JsSIP = require('jssip');
const NodeWebSocket = require('jssip-node-websocket').default || require('jssip-node-websocket');

const [url, user, password, peer] = process.argv.slice(2);
const ca = process.env.PHONE_CA ? fs.readFileSync(process.env.PHONE_CA) : undefined;
const socket = new NodeWebSocket(url, {
  origin: process.env.PHONE_ORIGIN || 'https://phone.example.com',
  requestOptions: { ca },
});
const ua = new JsSIP.UA({
  sockets: [socket],
  uri: `sip:${user}@example.com`,
  password,
  register_expires: 120,
});
ua.on('connected', () => console.log('connected'));
ua.on('disconnected', (e) => console.log('disconnected', e.error ? e.reason || e.code : ''));
ua.on('registrationFailed', (e) => console.log('registration failed', e.cause));
ua.on('newMessage', (e) => {
  if (e.originator === 'remote') {
    console.log('message:', e.request.body);
    e.message.accept();
  }
});
ua.on('registered', () => {
  console.log('registered');
  if (!peer) return;
  ua.sendMessage(`sip:${peer}@example.com`, 'hello over WSS', {
    eventHandlers: {
      succeeded: () => console.log('message sent'),
      failed: (e) => console.log('message failed', e.cause),
    },
  });
});
ua.on('unregistered', () => console.log('unregistered'));
process.on('SIGTERM', () => {
  ua.stop();
  setTimeout(() => process.exit(0), 1000);
});
ua.start();
