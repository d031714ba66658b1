// js-ipfs 0.18.1 as a daemon without a network: Kubo's RPC and a gateway, on free ports of loopback.
// Usage: node js_ipfs.mjs REPO. Prints one line, {"rpc": URL, "gateway": URL}, and runs until its stdin ends.
import { create } from 'ipfs-core'
import { HttpApi } from 'ipfs-http-server'
import { HttpGateway } from 'ipfs-http-gateway'

const loopback = '/ip4/127.0.0.1/tcp/0'
const ipfs = await create({
  repo: process.argv[2],
  silent: true,
  offline: true,
  init: { emptyRepo: true, algorithm: 'Ed25519' },
  config: {
    Addresses: { Swarm: [], API: loopback, Gateway: loopback }, // with any swarm address it does not start
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false }, webRTCStar: { Enabled: false } }
  }
})
const rpc = new HttpApi(ipfs)
await rpc.start()
const gateway = new HttpGateway(ipfs)
await gateway.start()
console.log(JSON.stringify({ rpc: rpc._apiServers[0].info.uri, gateway: gateway._gatewayServers[0].info.uri }))
process.stdin.on('end', () => process.exit(0)).resume() // ours when whoever started us is gone, however it went
