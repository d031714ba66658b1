// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title EIP-712 as market/signing.py does it: our domain, and who signed a digest
library TypedData {
    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,bytes32 salt)");
    string internal constant NAME = "octo";
    string internal constant VERSION = "1";

    function saltOf(string memory network) internal pure returns (bytes32) {
        return sha256(bytes.concat("octo/network/1", bytes(network)));
    }

    function separator(bytes32 salt, uint256 chainId) internal pure returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(NAME)), keccak256(bytes(VERSION)), chainId, salt));
    }

    /// @dev The zero address for anything that is no signature, a high s among it (EIP-2): compare with a signer that
    /// is known not to be zero.
    function signerOf(bytes32 digest, bytes32 r, bytes32 vs) internal pure returns (address signer) {
        (signer,,) = ECDSA.tryRecover(digest, r, vs);
    }
}
