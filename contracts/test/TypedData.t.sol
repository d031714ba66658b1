// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TypedData} from "../src/libraries/TypedData.sol";
import {Keys} from "./utils/Keys.sol";

contract TypedDataTest is Keys {
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    function testFuzz_signerIsFound(uint128 key, bytes32 digest) external pure {
        vm.assume(key != 0);
        (bytes32 r, bytes32 vs) = compact(key, digest);
        vm.assertEq(TypedData.signerOf(digest, r, vs), vm.addr(key));
    }

    /// @dev A compact signature has 255 bits for s, a sliver more than half the curve's order. What lies in it is refused
    /// as well (EIP-2), though the curve would name a signer for it.
    function test_aHighSIsRefusedThoughItRecovers() external pure {
        bytes32 digest = keccak256("digest");
        (bytes32 r,) = compact(1, digest);
        vm.assertTrue(ecrecover(digest, 27, r, bytes32(HALF_ORDER)) != address(0));
        vm.assertTrue(TypedData.signerOf(digest, r, bytes32(HALF_ORDER)) != address(0));
        vm.assertTrue(ecrecover(digest, 27, r, bytes32(HALF_ORDER + 1)) != address(0));
        vm.assertEq(TypedData.signerOf(digest, r, bytes32(HALF_ORDER + 1)), address(0));
    }
}
