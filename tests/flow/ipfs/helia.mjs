// Helia as a node of its own, over HTTP alone. Usage: node helia.mjs [ROUTER_URL]
//   PUT  /add?options=JSON          the body as a file, by Helia's importer (`chunk`: bytes a leaf); answers with its CID
//   POST /folder?options=JSON       {"path": "text", …} as a directory; answers with its CID
//   GET  /ipfs/CID?format=raw       a block of its store (a trustless gateway without files: 406 for anything else)
//   GET  /fetch/CID[/path]          a file that it has to find: through ROUTER_URL, from the gateways named there
// Prints one line, {"gateway": URL}, and runs until its stdin ends.
import { createServer } from 'node:http'
import { createHeliaLight } from 'helia'
import { withHTTP } from '@helia/http'
import { unixfs } from '@helia/unixfs'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { CID } from 'multiformats/cid'

const router = process.argv[2]
const http = { delegatedRouters: router ? [router] : [], recursiveGateways: [], allowInsecure: true, allowLocal: true }
const helia = await withHTTP(createHeliaLight(), http).start()
const files = unixfs(helia)

async function answer (request, response) {
  const url = new URL(request.url, 'http://localhost')
  const [, verb, text, ...path] = url.pathname.split('/')
  const said = JSON.parse(url.searchParams.get('options') ?? '{}')
  if (verb === 'add') {
    const { chunk, ...options } = said
    if (chunk) options.chunker = fixedSize({ chunkSize: chunk })
    response.end((await files.addByteStream(request, options)).toString())
  } else if (verb === 'folder') {
    let body = ''
    for await (const piece of request) body += piece
    const entries = Object.entries(JSON.parse(body))
    const source = entries.map(([path, text]) => ({ path, content: new TextEncoder().encode(text) }))
    let root
    for await (const added of files.addAll(source, { wrapWithDirectory: true, ...said })) root = added.cid
    response.end(root.toString())
  } else if (verb === 'ipfs') {
    if (url.searchParams.get('format') !== 'raw') return response.writeHead(406).end()
    const pieces = []
    for await (const piece of helia.blockstore.get(CID.parse(text), { offline: true })) pieces.push(piece)
    response.writeHead(200, { 'Content-Type': 'application/vnd.ipld.raw' }).end(Buffer.concat(pieces))
  } else if (verb === 'fetch') {
    const options = { signal: AbortSignal.timeout(60000), path: path.join('/') || undefined }
    for await (const piece of files.cat(CID.parse(text), options)) response.write(piece)
    response.end()
  } else {
    response.writeHead(404).end()
  }
}

const server = createServer((request, response) => {
  answer(request, response).catch(error => {
    if (response.headersSent) return response.destroy()
    response.writeHead(error.name === 'NotFoundError' ? 404 : 500).end(`${error.name}: ${error.message}\n`)
  })
})
server.listen(0, '127.0.0.1', () => {
  console.log(JSON.stringify({ gateway: `http://127.0.0.1:${server.address().port}` }))
})
process.stdin.on('end', () => process.exit(0)).resume() // ours when whoever started us is gone, however it went
