// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Vm} from "./Vm.sol";

/// @title forge's cheatcodes, and signatures in the form that our contracts take
abstract contract Keys {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// @dev EIP-2098: s with the parity of v in its top bit.
    function compact(uint256 key, bytes32 digest) internal pure returns (bytes32 r, bytes32 vs) {
        uint8 v;
        bytes32 s;
        (v, r, s) = vm.sign(key, digest);
        vs = bytes32(uint256(s) | (uint256(v - 27) << 255));
    }

    /// @dev `number` folded into low..high.
    function bound(uint256 number, uint256 low, uint256 high) internal pure returns (uint256) {
        return low + number % (high - low + 1);
    }
}
