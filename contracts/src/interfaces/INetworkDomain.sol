// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";

/// @title The EIP-712 domain that a whole network shares, on chain and off
/// @notice `EIP712Domain(string name,string version,uint256 chainId,bytes32 salt)` with name "octo", version "1" and the
/// network's salt. There is no `verifyingContract`: receipts and vouchers are signed before anyone knows which contract
/// will judge them. What must hold at one contract only carries that contract's address in the struct itself.
interface INetworkDomain is IERC5267 {
    /// @notice sha256("octo/network/1" || network name)
    function networkSalt() external view returns (bytes32);

    /// @notice The domain separator on the chain as it is now; it follows the chain id through a fork.
    function domainSeparator() external view returns (bytes32);
}
