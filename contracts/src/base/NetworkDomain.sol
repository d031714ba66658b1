// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INetworkDomain} from "../interfaces/INetworkDomain.sol";
import {TypedData} from "../libraries/TypedData.sol";

/// @title Holds a network's EIP-712 domain: hashed once, and anew if the chain id ever changes (a fork)
abstract contract NetworkDomain is INetworkDomain {
    /// @inheritdoc INetworkDomain
    bytes32 public immutable override networkSalt;
    uint256 private immutable _hashedFor;
    bytes32 private immutable _hashed;

    constructor(string memory network) {
        networkSalt = TypedData.saltOf(network);
        _hashedFor = block.chainid;
        _hashed = TypedData.separator(networkSalt, block.chainid);
    }

    /// @inheritdoc INetworkDomain
    function domainSeparator() public view override returns (bytes32) {
        return block.chainid == _hashedFor ? _hashed : TypedData.separator(networkSalt, block.chainid);
    }

    /// @notice ERC-5267: which members the domain has (0x17: all but `verifyingContract`) and what is in them.
    function eip712Domain()
        external
        view
        override
        returns (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        )
    {
        return (hex"17", TypedData.NAME, TypedData.VERSION, block.chainid, address(0), networkSalt, new uint256[](0));
    }
}
