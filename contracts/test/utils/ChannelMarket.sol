// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../../src/interfaces/IPaymentChannels.sol";
import {Market} from "./Market.sol";

/// @title The base of the tests of PaymentChannels: who calls it, and with what it says no
abstract contract ChannelMarket is Market {
    uint256 internal constant DEPOSIT = 100 ether;

    function state(uint256 salt) internal view returns (IPaymentChannels.Channel memory) {
        return channels.channel(idOf(salt));
    }

    function redeemAs(address who, IPaymentChannels.Voucher memory v) internal returns (uint256) {
        vm.prank(who);
        return channels.redeem(PAYEE, v);
    }

    function closeAs(address who, uint256 salt) internal returns (uint256) {
        IPaymentChannels.Terms memory terms = termsOf(salt);
        vm.prank(who);
        return channels.close(terms);
    }

    function topUpAs(address who, uint256 salt, uint256 amount) internal {
        bytes32 id = idOf(salt);
        vm.prank(who);
        channels.topUp(id, amount);
    }

    function refuse(bytes4 why, uint256 salt) internal {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt)));
    }

    function refuse(bytes4 why, uint256 salt, uint256 more) internal {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt), more));
    }

    function refuse(bytes4 why, uint256 salt, uint256 more, uint256 most) internal {
        vm.expectRevert(abi.encodeWithSelector(why, idOf(salt), more, most));
    }
}
